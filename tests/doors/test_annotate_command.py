"""`napari-muvit annotate`: outlines of QuPath become labels that training takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from napari_muvit import api
from napari_muvit.__main__ import main


def feature(name: str | None, left: float, top: float, side: float) -> dict[str, object]:
    """A square as QuPath writes it: corners are [x, y], in pixels from the image's corner."""
    ring = [[left, top], [left + side, top], [left + side, top + side], [left, top + side],
            [left, top]]
    about = {} if name is None else {"classification": {"name": name, "color": [200, 0, 0]}}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": about}


def write(path: Path, *features: dict[str, object]) -> str:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), "utf-8")
    return str(path)


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "slide.ome.zarr"
    list(api.convert(np.zeros((96, 128), np.uint8), path, levels=(1, 2), chunk=64))
    return str(path)


def test_outlines_become_the_labels_beside_the_image(
    image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = write(tmp_path / "a.geojson", feature("Epidermis", 10, 20, 8),
                  feature("Background", 60, 60, 4))
    assert main(["annotate", image, cells]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == ["1\tbackground\t16 px", "2\tEpidermis\t64 px"]
    store = tmp_path / "slide_annotations.ome.zarr"
    assert said.err.strip() == f"annotate: wrote {store}"
    pixels = api.open_pyramid(store).level_image(1)[0]
    assert (pixels[20:28, 10:18] == 2).all()
    assert (pixels[60:64, 60:64] == 1).all()
    assert (pixels != 0).sum() == 80
    more = write(tmp_path / "b.geojson", feature("Dermis", 30, 30, 2))
    assert main(["annotate", image, more]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3\tDermis\t4 px"


def test_the_labels_train(image: str, tmp_path: Path) -> None:
    labels = str(tmp_path / "labels.ome.zarr")
    cells = write(tmp_path / "a.geojson", feature("one", 10, 20, 30), feature("two", 60, 40, 30))
    assert main(["annotate", image, cells, "--output", labels]) == 0
    run = api.finetune({"images": [image], "labels": [labels], "levels": [1], "crop_size": 32,
                        "preset": "tiny", "num_layers": 1, "steps": 1, "batch_size": 1,
                        "tissue": "none", "output": str(tmp_path / "run")})
    assert run.wait().reason == "completed"


def test_bad_outlines_are_one_sentence(
    image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classless = write(tmp_path / "a.geojson", feature(None, 10, 20, 8))
    assert main(["annotate", image, classless]) == 2
    assert "give each a class" in capsys.readouterr().err
    beside = write(tmp_path / "b.geojson", feature("one", 500, 20, 8))
    assert main(["annotate", image, beside]) == 2
    assert "from this image, whole and unscaled" in capsys.readouterr().err
    both = write(tmp_path / "c.geojson", feature("one", 500, 20, 8), feature("one", 5, 20, 8))
    assert main(["annotate", image, both]) == 0
    assert "1 of 2 outlines lie beside the image" in capsys.readouterr().err
    assert main(["annotate", image, str(tmp_path / "nowhere.geojson")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["info", classless]) == 2
    assert "napari-muvit annotate IMAGE" in capsys.readouterr().err
