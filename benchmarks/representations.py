"""What frozen features tell, by the levels that they were pretrained with (Table 7).

    python benchmarks/representations.py [--seeds 0 1 2] [--output representations]
        [--decoder-context visible|all]

Sections of human cortex (spatialLIBD 151507 to 151676, three donors). Autoencoders of one, two
and three levels are pretrained on sections of two donors without labels; then linear probes
read their frozen encoders, ROC-AUC of each class against all others:

``layer``: the layer of a patch at level 1, learned on the two donors, judged on the third.
``donor``: whose section a crop is from, as in the paper: the features of every level averaged
over the crop, five crops of each section to learn from and ten of others to judge on.

The rate of pretraining is searched for each row on validation sections. What was measured is
not repeated, so an interrupted table can be gone on with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from cortex_layers import DONORS, TEST, TRAINING, UNLABELLED, default_data
from experiments.command import make_parser, measure_rows, with_flags
from experiments.experiment import Experiment, Row, Settings
from experiments.muvit_runs import curve_of, finish_run, seconds_of
from experiments.table import Column, markdown

from napari_muvit import api
from napari_muvit.data.cohort import CohortRow, write_cohort
from napari_muvit.data.labels import infer_class_table
from napari_muvit.inference.features import parse_encoder
from napari_muvit.inference.probe import ProbeScores, Samples, collect, score_probe

VALIDATION = (DONORS[0][-1], DONORS[1][-1])
"""Sections of the donors of training that only the rate is chosen on."""

LEVELS = ((1,), (1, 4), (1, 4, 16))
ROWS = tuple(Row(f"levels_{'_'.join(map(str, levels))}", f"MuViT[{','.join(map(str, levels))}]",
                 levels) for levels in LEVELS)
CROPS = (5, 10)


@dataclass(frozen=True)
class CortexSettings(Settings):
    """Sizes of the experiment; sections are read from where they are."""

    task: str = "cortex"
    size: int = 600
    counts: tuple[int, int, int] = (6, 2, 4)
    set_levels: tuple[int, ...] = LEVELS[-1]
    crop_size: int = 32
    preset: str = "small"
    steps: int = 3000
    num_probed: int = 65_536
    decoder_context: str = "visible"

    def cohort(self, folder: Path) -> Path:
        """The table of the sections, without labels, written to `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        images = default_data() / "images"
        rows = [CohortRow(str((images / f"{section}.png").absolute()),
                          split="val" if section in VALIDATION else "train")
                for section in TRAINING]
        write_cohort(folder / "sections.csv", rows)
        return folder / "sections.csv"


PRESETS = {
    "cpu": CortexSettings(),
    "full": CortexSettings(preset="base", batch_size=64, steps=50_000, val_samples=256,
                           rates=(6e-5, 1.2e-4, 2.4e-4), device="cuda", precision="bf16",
                           workers=8),
}
TINY: dict[str, Any] = {
    "preset": "tiny", "batch_size": 4, "steps": 4, "validations": 2, "val_samples": 4,
    "search_share": 0.5, "rates": (3e-4, 1e-3), "num_probed": 200,
}
"""To try the command: everything but the sections."""


class Representations(Experiment):
    """Rows are autoencoders; what is measured is what linear probes read from them."""

    judged_by = "squared error"

    def _train(
        self, row: Row, seed: int, rate: float, steps: int, place: Path, is_tested: bool = False,
    ) -> dict[str, Any]:
        s = self.settings
        options = s.options(self.cohort, row.levels, seed, rate, steps, place / "run")
        options["decoder_context"] = s.decoder_context
        run = finish_run(api.pretrain, options)
        curve = [(step, -loss) for step, loss in curve_of(run, "loss")]
        found: dict[str, Any] = {
            "val": max(value for _, value in curve), "curve": curve, "seconds": seconds_of(run),
        }
        if is_tested:
            probes = probe_run(run, s, seed)
            found["scores"] = {name: scores.mean_auc for name, scores in probes.items()}
            found |= {**found["scores"],
                      "probes": {name: scores.to_dict() for name, scores in probes.items()}}
        return found


def probe_run(run: Path, settings: CortexSettings, seed: int) -> dict[str, ProbeScores]:
    """Both probes of a pretrained run."""
    return {"layer": probe_layers(run, settings, seed), "donor": probe_donors(run, settings, seed)}


def probe_layers(run: Path, settings: CortexSettings, seed: int) -> ProbeScores:
    """Layers of patches at level 1: learned on the donors of training, judged on the other."""
    folder = default_data()
    sections = (*TRAINING, *TEST)
    labels = [api.open_pyramid(folder / "labels" / f"{section}.png").as_labels()
              for section in sections]
    table = infer_class_table(labels, UNLABELLED)
    options: dict[str, Any] = {"device": settings.device, "threads": settings.threads}
    encoder = parse_encoder(str(run), **options)
    parts: dict[bool, list[Samples]] = {False: [], True: []}
    for number, (section, truth) in enumerate(zip(sections, labels, strict=True)):
        rng = np.random.default_rng([seed, number])
        found = collect(str(folder / "images" / f"{section}.png"), truth, table, encoder, 1, rng,
                        options)
        chosen = np.zeros(len(found.classes), bool)
        chosen[rng.permutation(len(chosen))[:settings.num_probed]] = True
        parts[section in TEST].append(found.part(chosen))
    return score_probe(join(parts[False]), join(parts[True]), table)


def join(parts: list[Samples]) -> Samples:
    """The samples of several images."""
    return Samples(*(np.concatenate([getattr(part, name) for part in parts])
                     for name in ("features", "classes", "places")))


def probe_donors(run: Path, settings: CortexSettings, seed: int) -> ProbeScores:
    """Donors of crops: learned on the first half of each donor's sections, judged on the rest."""
    images = default_data() / "images"
    halves: tuple[list[Any], list[Any]] = ([], [])
    for number, sections in enumerate(DONORS, start=1):
        for place, section in enumerate(sections):
            halves[2 * place >= len(sections)].append(
                (str(images / f"{section}.png"), f"donor {number}"))
    scores: ProbeScores = api.probe_images(
        *halves, str(run), crops=CROPS, seed=seed, device=settings.device)
    return scores


def table(folder: Path, crop_size: int) -> str:
    """Markdown of what is there."""
    named = [(row.key, f"{row.title}, {crop_size * row.levels[-1]} px in view") for row in ROWS]
    columns = [Column("layer", "layer of a patch"), Column("donor", "donor of a crop"),
               Column("rate", "rate", 5), Column("samples", "samples", 0)]
    return markdown(folder, named, columns, "ROC-AUC")


def main(argv: list[str] | None = None) -> str:
    """Measure what is asked for and missing; write and return the table."""
    parser = make_parser(__doc__ or "", "representations", [row.key for row in ROWS], PRESETS)
    parser.add_argument("--decoder-context", choices=("visible", "all"), default="visible",
                        help="what reconstruction decoders look at")
    given = parser.parse_args(argv)
    settings = replace(with_flags(PRESETS[given.preset], given, TINY),
                       decoder_context=given.decoder_context)
    return measure_rows(given, ROWS, lambda: Representations(given.output, settings),
                        lambda: table(given.output, settings.crop_size))


if __name__ == "__main__":
    main()
