"""What a finished prediction tells, and its outlines for QuPath."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_muvit import api
from napari_muvit.data.output import OutputLayout, PredictionStore
from napari_muvit.plugin.results_view import ResultsView

WAIT_MS = 60_000
TABLE = api.ClassTable(
    (api.LabelClass(1, "rest", "#808080"), api.LabelClass(2, "nuclei", "#ff0000")), background=1)


@pytest.mark.parametrize("planes", [(), (2,)])
def test_outlines_are_in_pixels_of_the_image(
    qtbot: Any, notices: list[str], tmp_path: Path, planes: tuple[int, ...]
) -> None:
    """Those of a volume are one file for each plane."""
    labels = np.ones((*planes, 40, 50), np.uint8)
    labels[..., 10:20, 5:25] = 2
    ones, zeros = [1.0] * len(planes), [0.0] * len(planes)
    layout = OutputLayout(labels.shape, "zyx"[-labels.ndim:], (64, 64), (64, 64),
                          (*ones, 2.0, 2.0), (*zeros, 0.5, 0.5), has_unit=False)
    store = PredictionStore.create(
        tmp_path / "p.ome.zarr", layout, dtype=np.uint8, classes=TABLE,
        facts={"grid": {"scale": [*ones, 2.0, 2.0], "offset": [*zeros, 0.5, 0.5]}})
    store.write([slice(0, n) for n in labels.shape], labels)
    view = ResultsView(lambda: api)
    qtbot.addWidget(view)
    view.show_results(store.path, [])
    with qtbot.waitSignal(view.exported, timeout=WAIT_MS):
        view.export_to(tmp_path / "p.geojson")
    qtbot.waitUntil(lambda: view.job is None, timeout=WAIT_MS)
    names = [f"p_{number}.geojson" for number in range(2)] if planes else ["p.geojson"]
    assert sorted(file.name for file in tmp_path.glob("*.geojson")) == names
    for name in names:
        (found,) = json.loads((tmp_path / name).read_text(encoding="utf-8"))["features"]
        assert found["properties"]["classification"]["name"] == "nuclei"
        corners = np.array(found["geometry"]["coordinates"][0])
        assert corners.min(axis=0).tolist() == [10, 20]
        assert corners.max(axis=0).tolist() == [50, 40]
        assert name in notices[-1]
