"""The paper's Table 4: who can tell inner from outer cells, with which views and boxes?

    python benchmarks/synthetic.py [--preset cpu|full] [--task rings|landmarks] [--rows KEY...]
        [--seeds 0 1 2] [--output synthetic] [--table]

Rows: U-Net, a network like DeepLabV3, MuViT with one level, with both levels but naive boxes,
and with both levels and true boxes, under the UNETR head, and the last one under Mask2Former
too. Every row has the same samples, augmentations and loss, and a learning rate searched on
validation images. MuViT rows are runs of `napari_muvit.api` with its defaults.

``cpu`` makes 512 px images and trains on crops of 64 px: every length of the set is a share of
the side, so this is the task of ``full``, the paper's 2048 px and crops of 256 px, for one CPU
core. An interrupted command goes on where it was; ``--table`` only writes what is there.
"""

from __future__ import annotations

from pathlib import Path

from experiments.command import CLASSES, run_table
from experiments.experiment import Row, Settings
from experiments.table import Column, markdown

COLUMNS = (
    Column("mdsc", "mDSC"), Column("rate", "rate", 5), Column("samples", "samples", 0),
    Column("seconds", "seconds", 0),
)


def rows(levels: tuple[int, ...]) -> tuple[Row, ...]:
    """The contenders; those that carry the claim first."""
    named = ",".join(map(str, levels))
    return (
        Row("muvit", f"MuViT[{named}] + UNETR", levels),
        Row("naive", f"MuViT[{named}] + UNETR, naive boxes", levels, is_naive=True),
        Row("one_level", f"MuViT[{levels[0]}] + UNETR", levels[:1]),
        Row("unet", "U-Net", levels[:1], network="unet"),
        Row("deeplab", "like DeepLabV3", levels[:1], network="deeplab"),
        Row("mask2former", f"MuViT[{named}] + Mask2Former", levels,
            options={"decoder": "mask2former"}),
    )


def table(folder: Path, settings: Settings) -> str:
    """Markdown of what is there."""
    columns = [Column(name, name) for name in CLASSES[settings.task]] + list(COLUMNS)
    named = [(row.key, row.title) for row in rows(settings.set_levels)]
    return markdown(folder, named, columns)


def main(argv: list[str] | None = None) -> str:
    """Measure what is asked for and missing; write and return the table."""
    return run_table(__doc__, "synthetic", rows, table, argv, tasks=CLASSES)


if __name__ == "__main__":
    main()
