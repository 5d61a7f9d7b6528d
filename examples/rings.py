"""Why one level cannot solve the rings: draws docs/figures/rings.png.

Two places of one image, one inside the marked ring and one outside. Their fine crops look the
same; the wide view around each shows where the centre is, and the fine crop's box in it says
on which side the cells lie.

    python examples/rings.py [PICTURE.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.data.rings import CLASSES, rings_image
from napari_muvit.geometry import FloatArray

SIZE, CROP, LEVELS, SHOWN = 2048, 256, (1, 4), 384
SEED = 0
OUTSIDE, INSIDE = (1180, 110), (1180, 1530)
"""Corners of the fine crops."""


def colored(image: NDArray[np.uint8], labels: NDArray[np.uint8] | None = None) -> Image.Image:
    """A grey image, its cells in the colours of their classes, at the size that is shown."""
    rgb = np.repeat(image[..., None], 3, axis=-1)
    if labels is not None:
        for item in CLASSES.classes[1:]:
            rgb[labels == item.value] = list(bytes.fromhex(item.color[1:]))
    return Image.fromarray(rgb).resize((SHOWN, SHOWN), Image.Resampling.BILINEAR)


def frame(picture: Image.Image, inner: FloatArray, outer: FloatArray, color: str) -> None:
    """Draw the box `inner` into a picture of the box `outer`, (2, 2) world px each."""
    scale = SHOWN / (outer[1] - outer[0])
    (top, left), (bottom, right) = (inner - outer[0]) * scale
    ImageDraw.Draw(picture).rectangle((left, top, right, bottom), outline=color, width=3)


def titled(picture: Image.Image, title: str) -> Image.Image:
    """A picture with a line of text above it."""
    canvas = Image.new("RGB", (SHOWN + 12, SHOWN + 34), "white")
    ImageDraw.Draw(canvas).text((6, 8), title, "black", ImageFont.load_default(16))
    canvas.paste(picture, (6, 30))
    return canvas


def main(path: Path) -> None:
    """Write the picture."""
    image, labels = rings_image(SEED, SIZE)
    pyramid, truth = open_pyramid(image), open_pyramid(labels)
    whole = np.asarray(pyramid.extent)
    overview, solved = colored(image), colored(image, labels)
    rows = []
    for place, color, name in ((OUTSIDE, "#377eb8", "outer"), (INSIDE, "#e41a1c", "inner")):
        fine = np.asarray(place, float) - 0.5
        corners = np.stack([fine, np.clip(fine - 384, -0.5, SIZE - 4 * CROP - 0.5)])
        crop = pyramid.crop(corner=corners, levels=LEVELS, size=CROP)
        wide = colored(crop.image[1, 0])
        frame(wide, crop.bbox[0], crop.bbox[1], color)
        for picture in (overview, solved):
            for box in crop.bbox:
                frame(picture, box, whole, color)
        target = truth.crop(corner=fine, levels=(1,), size=CROP).image[0, 0]
        rows.append([
            titled(colored(crop.image[0, 0]), "level 1: which class are these cells?"),
            titled(wide, "level 4 and the box of level 1: which side?"),
            titled(colored(crop.image[0, 0], target), f"answer: {name}"),
        ])
    rows[0].insert(0, titled(overview, "the image, and both crops"))
    rows[1].insert(0, titled(solved, "classes: outer blue, inner red"))
    width, height = rows[0][0].size
    canvas = Image.new("RGB", (4 * width, 2 * height), "white")
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            canvas.paste(picture, (j * width, i * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    default = Path(__file__).resolve().parents[1] / "docs" / "figures" / "rings.png"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
