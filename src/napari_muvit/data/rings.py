"""The Synthetic set of the paper, made by code: cells whose class only the wide view shows.

MuViT, section 4.1: 2048 x 2048 images, one channel, concentric rings perturbed by Perlin noise,
outer and inner cells that look alike. A cell is inner if it lies inside the nearest marked ring.

What makes one level blind and two levels see:

- Every length is a share of the image's side, so a smaller image is the same task for a
  smaller crop: 512 px with crops of 64 are 2048 px with crops of 256.
- Around the marked ring run fainter lines, concentric with it. Across the wide view their bend
  tells where the centre is. Within a fine crop, an eighth of the side, the noise bends a line
  more than its radius does, so a line there says nothing about its inner side. A ring without
  such lines could be solved by enclosure alone, which small transformers do not learn.
- Lines are interrupted everywhere, and there are none near a centre, where the bend would show
  even in a fine crop. Without lines there is nothing to see but cells.
- A wide view, half of the side, is as wide as the centres are apart. So every side of a ring is
  seen equally often in it, and so are both kinds of cell. Were there one large ring, a wide view
  would lie on one side of its centre, and a model that does not know where in that view the fine
  crop lies could tell the class by the direction of the centre, or by the kind that is in the
  majority (``benchmarks/giveaways.py``).
- Cells lie near the marked rings alone, on both of their sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_muvit.data.drawn_cells import CellOptions, cell_classes, draw_scene, pixel_centres
from napari_muvit.data.drawn_sets import DrawnSet
from napari_muvit.geometry import FloatArray

SIZE = 2048
COUNTS = {"train": 1638, "val": 220, "test": 190}
"""Images of each split in the paper."""

OUTER, INNER = 1, 2
CLASSES = cell_classes("outer", "inner")


@dataclass(frozen=True)
class RingOptions(CellOptions):
    """Lengths as shares of the image's side, brightness from 0 to 1.

    Attributes
    ----------
    pitch
        Mean distance between cells.
    apart
        Distance between neighbouring centres.
    shake
        Largest distance of a centre from its place in their grid, along each axis.
    radius
        Smallest and largest radius of a marked ring.
    spacing
        Distance between neighbouring lines.
    width
        Half width of a line; the marked ring is `marked` times as wide.
    hole
        Radius around a centre without lines.
    band
        Largest distance of a cell from the marked ring.
    waves
        Wavelength and amplitude of each octave of noise that bends the lines.
    gaps
        Wavelength of the noise that interrupts lines, and the share that is left.
    line_brightness
        Of the marked rings; the other lines are fainter.
    """

    pitch: float = 0.03
    apart: float = 0.5
    shake: float = 0.03
    radius: tuple[float, float] = (0.15, 0.19)
    spacing: float = 0.055
    width: float = 0.005
    marked: float = 2.0
    hole: float = 0.06
    band: float = 0.07
    waves: tuple[tuple[float, float], ...] = ((0.25, 0.02), (0.14, 0.016), (0.07, 0.006))
    gaps: tuple[float, float] = (0.12, 0.75)
    line_brightness: float = 0.5


def perlin(rng: np.random.Generator, size: int, wavelength: float) -> FloatArray:
    """Gradient noise (size, size) with cells of `wavelength` pixels, about -0.7 to 0.7.

    Perlin (2002), "Improving noise": the quintic fade.
    """
    cells = int(np.ceil(size / wavelength)) + 1
    angle = rng.uniform(0, 2 * np.pi, (cells + 1, cells + 1))
    gradient = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    shift = rng.random(2)
    at = [np.arange(size) / wavelength + s for s in shift]
    cell = [a.astype(np.int64) for a in at]
    part = [a - c for a, c in zip(at, cell, strict=True)]
    fade = [p**3 * (p * (p * 6 - 15) + 10) for p in part]

    def corner(dy: int, dx: int) -> FloatArray:
        g = gradient[np.ix_(np.minimum(cell[0] + dy, cells), np.minimum(cell[1] + dx, cells))]
        dot: FloatArray = g[..., 0] * (part[0] - dy)[:, None] + g[..., 1] * (part[1] - dx)
        return dot

    across = fade[1]
    top = corner(0, 0) * (1 - across) + corner(0, 1) * across
    bottom = corner(1, 0) * (1 - across) + corner(1, 1) * across
    noise: FloatArray = top + (bottom - top) * fade[0][:, None]
    return noise


def rings_image(
    seed: int, size: int = SIZE, options: RingOptions | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One image and its labels, (size, size) uint8 each; the same for the same seed.

    Returns
    -------
    image, labels
        Labels: 0 background, 1 outer cells, 2 inner cells (see `CLASSES`).
    """
    options = options or RingOptions()
    rng = np.random.default_rng([seed, 0x52696E67])
    distance, radius = _nearest_centre(rng, size, options)
    for wavelength, amplitude in options.waves:
        distance = distance + _smooth_noise(rng, size, wavelength) * amplitude / 0.35
    lines = _draw_lines(rng, distance, radius, options)
    clear = options.cell[1] + options.width * options.marked
    depth = distance - radius
    is_near = (np.abs(depth) >= clear) & (np.abs(depth) <= options.band)
    classes = np.where(is_near, np.where(depth < 0, INNER, OUTER), 0)
    return draw_scene(rng, classes, 0.15 + options.line_brightness * lines, options)


def _nearest_centre(
    rng: np.random.Generator, size: int, options: RingOptions
) -> tuple[FloatArray, FloatArray]:
    """Distance from the nearest centre, and the radius of its marked ring, (size, size) each.

    Centres lie on a shaken square grid of random phase that reaches beyond the image.
    """
    steps = (np.arange(-1, np.ceil(1 / options.apart)) + rng.random((2, 1))) * options.apart
    centres = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 2)
    centres = centres + rng.uniform(-1, 1, centres.shape) * options.shake
    radii = rng.uniform(*options.radius, len(centres))
    place = pixel_centres(size)
    nearest, radius = np.full((size, size), np.inf), np.zeros((size, size))
    for (y, x), own in zip(centres, radii, strict=True):
        distance = np.hypot(place[:, None] - y, place[None, :] - x)
        radius[distance < nearest] = own
        np.minimum(nearest, distance, out=nearest)
    return nearest, radius


def _smooth_noise(rng: np.random.Generator, size: int, wavelength: float) -> FloatArray:
    """Noise with a wavelength given as share of the side, made small and enlarged."""
    small = min(size, 256)
    noise = perlin(rng, small, wavelength * small)
    at = np.clip((np.arange(size) + 0.5) * small / size - 0.5, 0, small - 1)
    first = np.minimum(at.astype(np.int64), small - 2)
    part = at - first
    rows = noise[first] * (1 - part)[:, None] + noise[first + 1] * part[:, None]
    enlarged: FloatArray = rows[:, first] * (1 - part) + rows[:, first + 1] * part
    return enlarged


def _draw_lines(
    rng: np.random.Generator, distance: FloatArray, radius: FloatArray, options: RingOptions
) -> FloatArray:
    """Brightness 0..1 of the concentric lines and of the marked ring."""
    from_ring = distance - radius
    phase = from_ring / options.spacing
    number = np.rint(phase)
    off = np.abs(phase - number) * options.spacing
    width = np.where(number == 0, options.width * options.marked, options.width)
    size = len(distance)
    softness = max(1.0 / size, options.width / 2)
    lines = np.clip((width - off) / softness + 0.5, 0, 1)
    lines = lines * np.where(number == 0, 1.0, 0.6)
    gaps = _smooth_noise(rng, size, options.gaps[0])
    kept = gaps > np.quantile(gaps[::8, ::8], 1 - options.gaps[1])
    drawn: FloatArray = lines * kept * (distance > options.hole)
    return drawn


RINGS = DrawnSet("rings", rings_image, CLASSES, COUNTS, SIZE, (1, 4))
write_rings = RINGS.write
