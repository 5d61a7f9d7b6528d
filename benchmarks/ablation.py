"""What makes attention across levels emerge soonest, each alone and together; and beyond.

    python benchmarks/ablation.py [--task rings|landmarks|cortex_donor3] [--rows KEY...] [--seeds 0]
        [--output ablation_rings] [--table]

Validation mDSC against samples seen, and test mDSC at the end. ``plain`` has the loss at the
finest level alone and RoPE frequencies of powers of 10000, as the official set-up; each of the
next rows adds one thing; ``defaults`` has what a run of `napari_muvit.api` has by itself, but
for attention, which is the paper's in all rows but one.

    pretraining    as many unlabelled samples before, in a masked autoencoder
    supervision    class shares predicted from the tokens of every level
    scales         RoPE wavelengths from two patches to twice the widest view
    curriculum     the first quarter of the samples teaches the coarser levels alone
    span, coarse_to_fine, fixed    the same, but for token coordinates, attention, or RoPE
                                   frequencies, which are then not trained

Learning rates are searched for each row as in ``synthetic.py``; so are resuming and presets.
``cortex_donor3``: sections of human cortex, of which the third donor's are for the test.
"""

from __future__ import annotations

from pathlib import Path

from experiments.command import run_table
from experiments.experiment import Row, Settings, curve_table

PLAIN = {"level_supervision": 0.0, "rope_frequencies": "base"}
OFFICIAL = {"decoder_context": "all"}
"""What decoders look at in pretraining, as in the official set-up."""


def rows(levels: tuple[int, ...]) -> tuple[Row, ...]:
    """The contenders."""
    return (
        Row("defaults", "supervision, scales", levels),
        Row("plain", "plain", levels, options=PLAIN),
        Row("supervision", "plain + supervision", levels, options={"rope_frequencies": "base"}),
        Row("scales", "plain + scales", levels, options={"level_supervision": 0.0}),
        Row("pretraining", "plain + pretraining", levels, options=PLAIN, pretraining=1.0,
            before=OFFICIAL),
        Row("curriculum", "plain + curriculum", levels, options=PLAIN, coarse_first=0.25),
        Row("all", "all four", levels, pretraining=1.0, coarse_first=0.25, before=OFFICIAL),
        Row("span", "supervision, scales, token coordinates span", levels,
            options={"token_coordinates": "span"}),
        Row("coarse_to_fine", "supervision, scales, attention coarse to fine: the defaults", levels,
            options={"attention_mode": "coarse_to_fine"}),
        Row("fixed", "supervision, scales, RoPE frequencies fixed", levels,
            options={"rotary_mode": "fixed"}),
    )


def table(folder: Path, settings: Settings) -> str:
    """Markdown of what is there."""
    return curve_table(folder, rows(settings.set_levels))


def main(argv: list[str] | None = None) -> str:
    """Measure what is asked for and missing; write and return the table."""
    return run_table(__doc__, "ablation", rows, table, argv)


if __name__ == "__main__":
    main()
