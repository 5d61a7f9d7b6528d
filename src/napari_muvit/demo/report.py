"""report.png: panels and loss curves on one page, drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

PANEL, GAP, CAPTION, COLUMNS, HEAD, LINE = 320, 24, 28, 4, 84, 22
INK, FAINT, PAPER = "#222222", "#bbbbbb", "#ffffff"
CURVE_COLOURS = ("#3366cc", "#cc5533", "#339966", "#886699")

Panel = tuple[str, NDArray[np.uint8]]
Curve = tuple[str, Sequence[float], Sequence[float]]
"""Name, steps, values."""


def write_report(
    path: Path, title: str, panels: Sequence[Panel], charts: Sequence[tuple[str, Sequence[Curve]]],
    notes: Sequence[str], table: Sequence[Sequence[str]] = (),
    legend: Sequence[tuple[str, str]] = (),
) -> None:
    """Write a picture of `panels` (RGB uint8), `charts` of curves, a table and lines of text.

    Parameters
    ----------
    panels
        Caption and (Y, X, 3) picture of each panel, in reading order.
    charts
        Title and curves of each chart; values are drawn on a logarithmic axis.
    table, legend
        Rows of cells; name and colour of each class.
    """
    from PIL import Image, ImageDraw

    cells = len(panels) + len(charts)
    rows = -(-cells // COLUMNS)
    width = COLUMNS * (PANEL + GAP) + GAP
    height = HEAD + rows * (PANEL + CAPTION + GAP) + LINE * (len(table) + len(notes) + 1) + GAP
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, 18), title, fill=INK, font=_font(22))
    _draw_legend(draw, legend)
    for index, (caption, picture) in enumerate(panels):
        _paste(page, draw, _cell(index), caption, picture)
    for index, (caption, curves) in enumerate(charts, start=len(panels)):
        _draw_chart(draw, _cell(index), caption, curves)
    top = HEAD + rows * (PANEL + CAPTION + GAP)
    for line, cells_of_row in enumerate(table):
        for column, cell in enumerate(cells_of_row):
            left = GAP + (0 if column == 0 else 110 + 140 * column)
            draw.text((left, top + LINE * line), cell, fill=INK, font=_font(15))
    top += LINE * len(table) + LINE // 2
    for line, note in enumerate(notes):
        draw.text((GAP, top + LINE * line), note, fill=INK, font=_font(15))
    page.save(path)


def _draw_legend(draw: ImageDraw, legend: Sequence[tuple[str, str]]) -> None:
    """Class names and colours on one line below the title."""
    left = GAP
    for name, colour in legend:
        draw.rectangle((left, 54, left + 14, 68), fill=colour, outline=FAINT)
        draw.text((left + 20, 52), name, fill=INK, font=_font(14))
        left += 20 + int(draw.textlength(name, font=_font(14))) + GAP


def colour_labels(
    labels: NDArray[np.integer], colours: dict[int, str], missing: str = "#ffffff"
) -> NDArray[np.uint8]:
    """Labels (Y, X) as a picture (Y, X, 3); values without a colour become `missing`."""
    table = np.tile(_rgb(missing), (max([*colours, int(labels.max())]) + 1, 1))
    for value, colour in colours.items():
        table[value] = _rgb(colour)
    picture: NDArray[np.uint8] = table[labels]
    return picture


def _rgb(colour: str) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex(colour.lstrip("#")), dtype=np.uint8)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=size)


def _cell(index: int) -> tuple[int, int]:
    """Left and top of the panel number `index`."""
    row, column = divmod(index, COLUMNS)
    return GAP + column * (PANEL + GAP), HEAD + row * (PANEL + CAPTION + GAP)


def _paste(
    page: Image, draw: ImageDraw, place: tuple[int, int], caption: str, picture: NDArray[np.uint8]
) -> None:
    from PIL import Image

    left, top = place
    draw.text((left, top), caption, fill=INK, font=_font(16))
    image = Image.fromarray(np.ascontiguousarray(picture))
    scale = PANEL / max(image.size)
    is_enlarged = scale > 1
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    method = Image.Resampling.NEAREST if is_enlarged else Image.Resampling.BOX
    page.paste(image.resize(size, method), (left, top + CAPTION))


def _draw_chart(
    draw: ImageDraw, place: tuple[int, int], caption: str, curves: Sequence[Curve]
) -> None:
    left, top = place[0] + 44, place[1] + CAPTION
    right, bottom = place[0] + PANEL, place[1] + CAPTION + PANEL - 24
    draw.text(place, caption, fill=INK, font=_font(16))
    draw.rectangle((left, top, right, bottom), outline=FAINT)
    values = [v for _, _, ys in curves for v in ys if np.isfinite(v) and v > 0]
    steps = [s for _, xs, _ in curves for s in xs]
    if not values:
        draw.text((left + 8, top + 8), "no values", fill=FAINT, font=_font(14))
        return
    low, high = np.log10(min(values)), np.log10(max(values))
    span, last = max(high - low, 1e-3), max(max(steps), 1)
    for number, (name, xs, ys) in enumerate(curves):
        colour = CURVE_COLOURS[number % len(CURVE_COLOURS)]
        points = [
            (left + (right - left) * x / last, bottom - (bottom - top) * (np.log10(y) - low) / span)
            for x, y in zip(xs, ys, strict=True) if np.isfinite(y) and y > 0
        ]
        if len(points) > 1:
            draw.line(points, fill=colour, width=2)
        draw.text((left + 8, top + 6 + 18 * number), name, fill=colour, font=_font(14))
    draw.text((place[0], top - 4), f"{10**high:.2g}", fill=INK, font=_font(13))
    draw.text((place[0], bottom - 12), f"{10**low:.2g}", fill=INK, font=_font(13))
    draw.text((right - 70, bottom + 4), f"{last:.0f} steps", fill=INK, font=_font(13))
