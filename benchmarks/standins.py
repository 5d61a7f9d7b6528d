"""Small stand-ins of the Mouse and KPIS sets, to walk their recipes without the data.

    python benchmarks/standins.py mouse|kpis FOLDER

leaves in FOLDER ``raw``, files that lie, are named and are labelled as those that the recipes
start from, and ``recipe.yaml``, the set's own recipe with sizes for a laptop. What is drawn only
resembles sections and slides: figures that are reached on it mean nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import yaml
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MOUSE_SIZE, MOUSE_UM, COARSER = (360, 480), 0.65, 2
"""Sections in px and um; their regions are pictures half as large."""

SPECIMENS = {"BM03": 2, "BM07": 2, "BM15": 2}
NUM_REGIONS = 11
KPIS_SIZE = (448, 512)
PARTS = {
    "KPIs24 Training Data": ("56Nx/12-116", "DN/11-356", "NEP25/08-368_01", "normal/normal_F1"),
    "KPIs24 Validation Data": ("56Nx/12-173", "normal/normal_M1"),
    "KPIs24 Testing Data": ("56NX/12-299", "NEP25/18-578"),
}
"""Group and slide in each part; the challenge writes 56Nx with a capital X in one of them."""

SMALL: dict[str, dict[str, Any]] = {
    "common": {"preset": "tiny", "crop_size": [32], "precision": "fp32", "workers": 0},
    "pretrain": {"steps": 20, "batch_size": 4, "learning_rate": 1e-3, "epoch_size": 80},
    "finetune": {"steps": 60, "batch_size": 4, "learning_rate": 1e-3, "epoch_size": 80,
                 "encoder_rate": 1.0, "validate_every": 30, "val_samples": 8},
}


def mouse_section(seed: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """A section (y, x) with nuclei, brightest where they are densest, and its regions 0 to 11.

    Regions are rings and sectors of an egg; what region a place has is told by its place and
    hardly by its nuclei. Every second section lacks the last region, as real ones lack some.
    """
    rng = np.random.default_rng(seed)
    height, width = MOUSE_SIZE
    y, x = np.mgrid[:height, :width]
    down, right = (y / height - 0.5) / 0.44, (x / width - 0.5) / 0.46
    turn = np.arctan2(down, np.abs(right))  # both halves of a brain alike
    radius = np.hypot(down, right) * (1 + 0.04 * np.cos(5 * turn + rng.uniform(0, 6)))
    ring = np.digitize(radius, rng.uniform(0.97, 1.03) * np.array([0.35, 0.68, 1.0]))
    sector = np.digitize(turn, [-0.8, 0.0, 0.8])
    inner = np.minimum(sector, 2)
    regions = np.select([ring == 0, ring == 1, ring == 2], [1 + inner, 4 + sector, 8 + sector])
    if seed % 2:
        regions[regions == NUM_REGIONS] = NUM_REGIONS - 1
    density = np.where(regions > 0, 0.012 + 0.004 * (regions % 3), 0.0)
    nuclei = gaussian_filter((rng.random(regions.shape) < density).astype(np.float64), 1.2)
    light = 300 + 9000 * nuclei + 150 * (regions > 0)
    return rng.poisson(light).astype(np.uint16), regions.astype(np.uint8)


def kidney_slide(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A slide (y, x, 3) of pink tissue on glass, and where its glomeruli are (y, x)."""
    rng = np.random.default_rng(seed)
    height, width = KPIS_SIZE
    y, x = np.mgrid[:height, :width]
    tissue = np.hypot((y / height - 0.5) / 0.45, (x / width - 0.5) / 0.42) < 1
    grain = gaussian_filter(rng.standard_normal(KPIS_SIZE), 2)
    glomeruli = np.zeros(KPIS_SIZE, bool)
    for row, column in np.ndindex(4, 4):
        centre = (np.array([row, column]) + rng.uniform(0.3, 0.7, 2)) / 4 * KPIS_SIZE
        glomeruli |= np.hypot(y - centre[0], x - centre[1]) < rng.uniform(14, 22)
    glomeruli &= tissue
    colours = np.where(tissue[..., None], (214, 150, 196), (243, 242, 244))
    colours = np.where(glomeruli[..., None], (158, 84, 150), colours)
    noisy = colours + 120 * (grain * tissue)[..., None] + rng.normal(0, 4, (*KPIS_SIZE, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8), glomeruli


def make_mouse(raw: Path, is_coloured: bool = False) -> None:
    """Sections as TIFF of 16 bits, and the picture of regions of each, smaller, as numbers.

    With `is_coloured` regions are RGB, of a size that their files do not tell.
    """
    palette = np.random.default_rng(0).integers(40, 255, (NUM_REGIONS + 1, 3), np.uint8)
    palette[0] = 0
    number = 0
    for specimen, count in SPECIMENS.items():
        for slide in range(count):
            image, regions = mouse_section(number)
            number += 1
            name = f"{specimen}_{slide + 1:03d}.tif"
            _write(raw / "slices" / name, image, MOUSE_UM)
            coarse = regions[COARSER // 2::COARSER, COARSER // 2::COARSER]
            if is_coloured:
                _write(raw / "regions" / name, palette[coarse], None, photometric="rgb")
            else:
                _write(raw / "regions" / name, coarse, MOUSE_UM * COARSER)


def make_kpis(raw: Path) -> None:
    """Slides as pyramids in BigTIFF, beside masks of 0 and 1 or of 0 and 255.

    Those of group NEP25 were scanned with half the magnification.
    """
    slides = [(part, slide) for part, names in PARTS.items() for slide in names]
    for number, (part, slide) in enumerate(slides):
        image, mask = kidney_slide(number)
        size = 0.5 if slide.startswith("NEP25") else 0.25
        path = raw / part / "Task2_WSI_level" / slide
        _write_pyramid(path.with_name(f"{path.name}_wsi.tiff"), image, size)
        _write(path.with_name(f"{path.name}_mask.tiff"),
               mask.astype(np.uint8) * (1 if number % 2 else 255), None)


def _write(path: Path, pixels: NDArray[Any], size: float | None, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, pixels, compression="deflate", metadata=None, **_resolution(size),
                     **{"photometric": "minisblack", **options})


def _write_pyramid(path: Path, pixels: NDArray[np.uint8], size: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"photometric": "rgb", "tile": (128, 128), "compression": "deflate",
                               "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(pixels, subifds=2, **options, **_resolution(size))
        for factor in (2, 4):
            height, width = (side // factor for side in pixels.shape[:2])
            blocks = pixels[:height * factor, :width * factor].reshape(
                height, factor, width, factor, 3)
            file.write(blocks.mean((1, 3)).astype(np.uint8), subfiletype=1, **options,
                       **_resolution(size * factor))


def _resolution(size: float | None) -> dict[str, Any]:
    """Tags for a pixel size in um."""
    if size is None:
        return {}
    return {"resolution": (1e4 / size, 1e4 / size), "resolutionunit": "CENTIMETER"}


def small_recipe(kind: str, folder: Path) -> dict[str, Any]:
    """The recipe of a set with small sizes, everything it reads and writes below `folder`."""
    recipe: dict[str, Any] = yaml.safe_load(
        (CONFIGS / f"{kind}.yaml").read_text(encoding="utf-8"))
    for section, options in SMALL.items():
        recipe[section] |= options
    if "crop_size" in recipe["pretrain"]:  # KPIS pretrains on smaller crops than it fine-tunes on
        recipe["common"]["crop_size"], recipe["pretrain"]["crop_size"] = [64], [32]
    table = str(folder / "data" / "images.csv")
    runs = str(folder / "pretrained"), str(folder / "finetuned")
    recipe["common"]["images"] = recipe["predict"]["images"] = [table]
    recipe["pretrain"]["output"] = recipe["finetune"]["pretrained"] = runs[0]
    recipe["finetune"]["output"] = recipe["predict"]["model"] = runs[1]
    recipe["predict"]["output"] = str(folder / "predictions")
    return recipe


MAKERS = {"mouse": make_mouse, "kpis": make_kpis}


def make_standin(kind: str, folder: Path) -> Path:
    """Write ``raw`` and ``recipe.yaml`` below `folder`; the path of the recipe."""
    MAKERS[kind](folder / "raw")
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(small_recipe(kind, folder), sort_keys=False),
                      encoding="utf-8")
    return recipe


def main(argv: list[str] | None = None) -> None:
    """Make one of the stand-ins."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("set", choices=tuple(MAKERS))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args(argv)
    recipe = make_standin(given.set, given.folder)
    print(f"""python benchmarks/recipe.py prepare {given.set} {given.folder / 'raw'} \
{given.folder / 'data'}
python benchmarks/recipe.py train {recipe}
python benchmarks/recipe.py table {recipe}""")


if __name__ == "__main__":
    main()
