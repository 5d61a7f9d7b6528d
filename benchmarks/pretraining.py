"""What pretraining learns (Table 2), and what it is worth (Table 3).

    python benchmarks/pretraining.py reconstruction [--task TASK] [--output pretraining]
    python benchmarks/pretraining.py curves [...]

``reconstruction``: squared error of masked patches on test images, for each level: one
autoencoder for each level alone, all levels with naive boxes, with true ones, and with a
decoder that looks at visible tokens alone, as the paper's words have it and as is our default;
in the other rows it looks at mask tokens too, as in the official code. Masks are drawn from a
fixed seed, once as in training, where a level may keep few patches or none, and once evenly
over all patches, as a model of one level always has it.

``curves``: validation mDSC while fine-tuning, with and without pretraining on as many
unlabelled samples; rates are searched for each row. ``--task``: ``rings``, ``landmarks``, or
``cortex_donor1`` to ``3``, sections of human cortex of which that donor's are for the test.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from experiments.command import run_table
from experiments.experiment import Experiment, Row, Settings, curve_table
from experiments.muvit_runs import curve_of, finish_run, seconds_of
from experiments.naive import naive_boxes
from experiments.sets import rows_of
from experiments.table import Column, markdown

from napari_muvit import api
from napari_muvit.data.dataset import PyramidDataset, make_loader
from napari_muvit.training.mae_task import MAETask
from napari_muvit.training.task import StepSeed

TEST_SEED = 4242


class Reconstruction(Experiment):
    """Rows are autoencoders; what is measured is their error on test images."""

    judged_by = "squared error"

    def _train(
        self, row: Row, seed: int, rate: float, steps: int, place: Path, is_tested: bool = False,
    ) -> dict[str, Any]:
        s = self.settings
        options = s.options(self.cohort, row.levels, seed, rate, steps, place / "run")
        run = finish_run(api.pretrain, {**options, **row.options}, row.is_naive)
        curve = [(step, -loss) for step, loss in curve_of(run, "loss")]
        found: dict[str, Any] = {
            "val": max(value for _, value in curve), "curve": curve, "seconds": seconds_of(run),
        }
        if is_tested:
            with naive_boxes(row.is_naive):
                found["scores"] = test_errors(
                    run, [one.image for one in rows_of(self.cohort, "test")], s)
        return {**found, **found.get("scores", {})}


@torch.no_grad()
def test_errors(run: Path, images: list[str], settings: Settings) -> dict[str, float]:
    """Mean squared error of masked pixels, of 0..1 intensities, for each level.

    ``level_4`` with the masks of training, ``even_level_4`` with even ones.
    """
    model: Any = api.load_model(run, device=settings.device)
    found = {}
    for kind, mode in (("", model.masking_mode), ("even_", "random")):
        model.masking_mode = mode
        errors = masked_errors(model, run, images, settings)
        found |= {f"{kind}{name.removeprefix('loss_')}": value
                  for name, value in errors.items() if name != "loss"}
    return found


def masked_errors(
    model: Any, run: Path, images: list[str], settings: Settings
) -> dict[str, float]:
    """What `MAETask` reports of crops of `images`, masked by the model's own rule."""
    dataset = PyramidDataset(
        [api.open_pyramid(image) for image in images], config=api.RunFolder(run).config(),
        augment=False, stream=2)
    task = MAETask(model.eval(), settings.batch_size, lambda *_: None)
    total = torch.zeros(task.num_scores, dtype=torch.float64)
    count = settings.val_samples * 4
    for index, batch in enumerate(make_loader(dataset, settings.batch_size, stop=count)):
        size = len(batch["img"])
        ready = task.prepare(batch, StepSeed(TEST_SEED, index), size, slice(0, size))
        total += task.scores({key: value.to(settings.device) for key, value in ready.items()})
    return task.metrics(total)


def reconstruction_rows(levels: tuple[int, ...]) -> tuple[Row, ...]:
    """The rows of Table 2 with decoders as in the official code, and with the paper's words."""
    named = ",".join(map(str, levels))
    full = {"decoder_context": "all"}
    alone = tuple(Row(f"alone_{level}", f"MuViT[{level}]", (level,), options=full)
                  for level in levels)
    return (
        Row("true", f"MuViT[{named}]", levels, options=full),
        Row("naive", f"MuViT[{named}], naive boxes", levels, is_naive=True, options=full),
        *alone,
        Row("visible", f"MuViT[{named}], visible context", levels,
            options={"decoder_context": "visible"}),
    )


def curve_rows(levels: tuple[int, ...]) -> tuple[Row, ...]:
    """The rows of Table 3."""
    named = ",".join(map(str, levels))
    return (
        Row("pretrained", f"MuViT[{named}], pretrained", levels, pretraining=1.0),
        Row("pretrained_full", f"MuViT[{named}], pretrained with full decoder context", levels,
            pretraining=1.0, before={"decoder_context": "all"}),
        Row("scratch", f"MuViT[{named}]", levels),
        Row("one_pretrained", f"MuViT[{levels[0]}], pretrained", levels[:1], pretraining=1.0),
        Row("one_scratch", f"MuViT[{levels[0]}]", levels[:1]),
    )


def reconstruction_table(folder: Path, settings: Settings) -> str:
    """Markdown of what is there: errors in thousandths would hide nothing, so five decimals."""
    columns = [Column(f"{kind}level_{level}", f"level {level}{words}", 5)
               for kind, words in (("", ""), ("even_", ", even masks"))
               for level in settings.set_levels]
    columns += [Column("rate", "rate", 5), Column("samples", "samples", 0)]
    named = [(row.key, row.title) for row in reconstruction_rows(settings.set_levels)]
    return markdown(folder, named, columns, "squared error of masked pixels")


def curves(folder: Path, settings: Settings) -> str:
    """Markdown of what is there."""
    return curve_table(folder, curve_rows(settings.set_levels))


def main(argv: list[str] | None = None) -> str:
    """Measure what is asked for and missing; write and return the table."""
    given = sys.argv[1:] if argv is None else argv
    kinds = {
        "reconstruction": (reconstruction_rows, reconstruction_table, Reconstruction),
        "curves": (curve_rows, curves, Experiment),
    }
    if not given or given[0] not in kinds:
        raise SystemExit("say which table: python benchmarks/pretraining.py "
                         "reconstruction | curves [--help]")
    rows, table, experiment = kinds[given[0]]
    output = f"pretraining_{given[0]}"
    return run_table(__doc__, output, rows, table, given[1:], experiment)


if __name__ == "__main__":
    main()
