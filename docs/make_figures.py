"""Draws the figures of the documentation that show data rather than windows.

    python docs/make_figures.py          # docs/figures/rings.png
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from napari_muvit.data.rings import CLASSES, SIZE, rings_image

FIGURES = Path(__file__).parent / "figures"
SIDE, GAP, TITLE = 384, 14, 24
COLORS = {1: "#377eb8", 2: "#e41a1c"}
SEED = 1
# Corners (y, x) of a fine and a coarse crop, px. Left of its line, a cell is outer or inner.
PLACES = {1: ((1131, 1578), (800, 1000)), 2: ((1211, 223), (900, 20))}
FINE, COARSE = 256, 1024


def rings_figure() -> Image.Image:
    """Two fine crops that look alike, the wide views around them, and the answer."""
    image, labels = rings_image(SEED, SIZE)
    grey = Image.fromarray(image).convert("RGB")
    solved = Image.fromarray(paint(image, labels))
    rows = []
    for kind, whole, title in ((1, grey, "the image, and both crops"),
                               (2, solved, "outer blue, inner red")):
        fine, coarse = PLACES[kind]
        overview = whole.copy()
        for other, places in PLACES.items():
            for corner, side in zip(places, (FINE, COARSE), strict=True):
                outline(overview, corner, side, COLORS[other], 12)
        wide = crop(grey, coarse, COARSE)
        inside = (fine[0] - coarse[0], fine[1] - coarse[1])
        outline(wide, inside, FINE, COLORS[kind], 8)
        rows.append([
            (overview, title), (crop(grey, fine, FINE), "level 1: which cells are inner?"),
            (wide, "level 4, and the box of level 1"),
            (crop(solved, fine, FINE), f"answer: {CLASSES.classes[kind].name} at the left"),
        ])
    return arrange(rows)


def paint(image: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image in grey with its cells in the colours of their classes, (Y, X, 3)."""
    painted = np.repeat(image[..., None], 3, axis=-1)
    for kind, color in COLORS.items():
        painted[labels == kind] = [int(color[i:i + 2], 16) for i in (1, 3, 5)]
    return painted


def crop(image: Image.Image, corner: tuple[int, int], side: int) -> Image.Image:
    """A square from (y, x) on."""
    y, x = corner
    return image.crop((x, y, x + side, y + side))


def outline(
    image: Image.Image, corner: tuple[int, int], side: int, color: str, width: int
) -> None:
    """Draw the border of a square."""
    y, x = corner
    ImageDraw.Draw(image).rectangle((x, y, x + side - 1, y + side - 1), outline=color, width=width)


def arrange(rows: list[list[tuple[Image.Image, str]]]) -> Image.Image:
    """Pictures of one size in rows, each below its title."""
    sheet = Image.new(
        "RGB", (len(rows[0]) * (SIDE + GAP) - GAP, len(rows) * (SIDE + GAP + TITLE)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(17)
    for i, row in enumerate(rows):
        for j, (picture, title) in enumerate(row):
            x, y = j * (SIDE + GAP), i * (SIDE + GAP + TITLE)
            draw.text((x, y), title, "black", font)
            sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y + TITLE))
    return sheet


if __name__ == "__main__":
    FIGURES.mkdir(exist_ok=True)
    rings_figure().quantize(128).save(FIGURES / "rings.png", optimize=True)
