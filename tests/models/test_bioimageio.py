"""Packages for bioimage.io: their own validator takes them, and they give the same outputs."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from napari_muvit import api
from napari_muvit.errors import CheckpointError, InputError
from napari_muvit.models.bioimageio import About, load_bioimageio, save_bioimageio
from napari_muvit.models.bioimageio_text import PAPER
from napari_muvit.models.checkpoint import ModelMeta, load_model, save_model
from napari_muvit.models.encoder import Encoder
from napari_muvit.models.mae import MAE
from napari_muvit.models.segmenter import Segmenter

SMALL: dict[str, Any] = {"in_channels": 2, "levels": (1, 4), "patch_size": 4, "num_layers": 2,
                         "dim": 48, "heads": 2}
OPTIONS: dict[str, Any] = {
    "token_coordinates": "centre", "rope_frequencies": "scales", "crop_size": (32, 32),
    "scaled_axes": (0, 1), "attention_mode": "coarse_to_fine",
}
CLASSES = {
    "classes": [{"value": 0, "name": "background", "color": "#808080"},
                {"value": 7, "name": "Gefäß", "color": "#e41a1c"}],
    "unlabelled": None, "background": 0,
}
META: dict[str, Any] = {
    "crop_size": (32, 32), "scaled_axes": ("y", "x"), "pixel_size": (0.3, 0.3),
    "normalization": {"kind": "percentile", "percentiles": [1.0, 99.8], "constant": 255.0},
    "channel_names": ("DAPI", "GFP"), "provenance": {"seed": 3, "metrics": {"mDSC": 0.5}},
}
KINDS = ("unetr", "mask2former", "mae", "constant", "volume", "movie", "official")


def models(kind: str) -> tuple[torch.nn.Module, ModelMeta | None]:
    """A model of each kind with what it knows about images."""
    torch.manual_seed(0)
    if kind in {"unetr", "mask2former"}:
        model = Segmenter(
            Encoder(**SMALL, **OPTIONS), 2, head_dim=32, decoder=kind, temperature=1.7)
        return model, ModelMeta("segmenter", **META, classes=CLASSES)
    if kind == "mae":
        return MAE(**SMALL, dim_decoder=40, rotary_mode="shared"), ModelMeta("mae", **META)
    if kind == "constant":
        rule = {"kind": "constant", "constant": 255.0}
        return Encoder(**SMALL), ModelMeta("encoder", **(META | {"normalization": rule}))
    if kind == "volume":
        encoder = Encoder(**(SMALL | {"patch_size": (2, 4, 4), "dim": 96}), ndim=3)
        return Segmenter(encoder, 2, head_dim=16), ModelMeta("segmenter")
    if kind == "movie":
        return Encoder(**(SMALL | {"dim": 96, "patch_size": (1, 1, 4, 4)}), ndim=4), None
    return Encoder(**SMALL, use_level_embed=False), None


@pytest.fixture(params=KINDS)
def package(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    """A package and the model that it was made of."""
    model, meta = models(request.param)
    folder = tmp_path / "package"
    save_bioimageio(folder, model.eval(), None if meta is None else meta.to_dict())
    return folder, model


def read(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((folder / "rdf.yaml").read_text(encoding="utf-8"))
    return values


def outputs_of(model: torch.nn.Module, folder: Path) -> np.ndarray:
    """What the original model makes of the test tensors, in the shape of the package's output."""
    tensors = [np.load(folder / t["test_tensor"]["source"]) for t in read(folder)["inputs"]]
    image, boxes = map(torch.from_numpy, tensors)
    for step in read(folder)["inputs"][0].get("preprocessing", ()):
        image = image * step["kwargs"]["gain"] + step["kwargs"]["offset"]
    with torch.no_grad():
        if isinstance(model, Segmenter):
            return model(image, boxes).softmax(dim=1).numpy()
        encoder = getattr(model, "encoder", model)
        features = encoder(image, boxes)[0]
    grid = [s // p for s, p in zip(image.shape[3:], encoder.patch_size, strict=True)]
    maps = features.reshape(1, len(encoder.levels), *grid, encoder.dim)
    return maps.movedim(-1, 2).numpy()


def test_outputs_are_those_of_the_original(package: tuple[Path, torch.nn.Module]) -> None:
    folder, model = package
    (output,) = read(folder)["outputs"]
    expected = np.load(folder / output["test_tensor"]["source"])
    np.testing.assert_allclose(expected, outputs_of(model, folder), rtol=1e-5, atol=1e-5)
    assert len(output["axes"]) == expected.ndim
    assert expected.std() > 1e-3


VALIDATE = """
import hashlib, pathlib, sys
from bioimageio.spec import InvalidDescr, ValidationContext, load_description
for folder in map(pathlib.Path, sys.argv[2:]):
    known = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    with ValidationContext(known_files={sys.argv[1]: None, **known}):  # asks no server
        found = load_description(folder / "rdf.yaml", perform_io_checks=True)
    assert not isinstance(found, InvalidDescr), found.validation_summary.errors
    arrays = [*found.get_input_test_arrays(), *found.get_output_test_arrays()]
    for tensor, array in zip([*found.inputs, *found.outputs], arrays, strict=True):
        sizes = tensor.get_axis_sizes_for_array(array)
        fixed = {a.id: a.size for a in tensor.axes if isinstance(a.size, int)}
        assert {name: sizes[name] for name in fixed} == fixed
        assert array.dtype == tensor.dtype
    print(folder.name, found.validation_summary.status)
"""


def test_the_projects_own_validator_finds_no_fault(tmp_path: Path) -> None:
    for kind in KINDS:
        model, meta = models(kind)
        save_bioimageio(tmp_path / kind, model, None if meta is None else meta.to_dict())
    folders = [str(tmp_path / kind) for kind in KINDS]
    ran = run(VALIDATE, PAPER["url"], *folders)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split("\n")[:-1] == [f"{kind} valid-format" for kind in KINDS]


def run(program: str, *args: str) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own: the validator's warnings are not ours to mend."""
    return subprocess.run(
        [sys.executable, "-c", program, *args], capture_output=True, text=True, check=False,
    )


FRESH = """
import hashlib, importlib, pathlib, sys
import numpy, torch, yaml
folder = pathlib.Path(sys.argv[1])
rdf = yaml.safe_load((folder / "rdf.yaml").read_text(encoding="utf-8"))
weights = rdf["weights"]["pytorch_state_dict"]
content = (folder / weights["source"]).read_bytes()
assert hashlib.sha256(content).hexdigest() == weights["sha256"]
made = weights["architecture"]
build = getattr(importlib.import_module(made["import_from"]), made["callable"])
network = build(**made["kwargs"])
state = torch.load(folder / weights["source"], weights_only=True)
print(network.load_state_dict(state, strict=weights.get("strict", True)))
inputs = [torch.from_numpy(numpy.load(folder / t["test_tensor"]["source"])) for t in rdf["inputs"]]
with torch.no_grad():
    found = network.eval()(*inputs)
    for step in rdf["outputs"][0].get("postprocessing", ()):
        assert step == {"id": "softmax", "kwargs": {"axis": "channel"}}
        found = found.softmax(dim=1)
expected = numpy.load(folder / rdf["outputs"][0]["test_tensor"]["source"])
numpy.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-4)
assert not {"napari", "qtpy"} & set(sys.modules)
"""


@pytest.mark.parametrize("kind", ["unetr", "mae"])
def test_a_fresh_process_reproduces_the_test_outputs(tmp_path: Path, kind: str) -> None:
    model, meta = models(kind)
    assert meta is not None
    save_model(tmp_path / "model", model, meta)
    api.export(tmp_path / "model", tmp_path / "package", format="bioimageio")
    ran = run(FRESH, str(tmp_path / "package"))
    assert ran.returncode == 0, ran.stderr
    assert "All keys matched" in ran.stdout


def test_a_package_is_a_model_like_any_other(package: tuple[Path, torch.nn.Module]) -> None:
    folder, model = package
    loaded = load_model(folder)
    np.testing.assert_allclose(outputs_of(loaded, folder), outputs_of(model, folder), atol=1e-6)
    assert loaded.meta.kind == ("segmenter" if isinstance(model, Segmenter) else "encoder")


def test_what_the_model_knows_about_images_survives(tmp_path: Path) -> None:
    model, meta = models("unetr")
    assert meta is not None
    save_bioimageio(tmp_path, model, meta.to_dict())
    assert load_model(tmp_path).meta == meta


def test_classes_channels_and_sizes_are_named(tmp_path: Path) -> None:
    model, meta = models("unetr")
    assert meta is not None
    save_bioimageio(tmp_path, model, meta.to_dict(),
                    About("Vessels in kidney", "CC-BY-4.0", ("Ada Lovelace",)))
    rdf = read(tmp_path)
    assert (rdf["name"], rdf["license"]) == ("Vessels in kidney", "CC-BY-4.0")
    assert rdf["authors"] == [{"name": "Ada Lovelace"}]
    assert rdf["cite"][0]["url"] == "https://arxiv.org/abs/2602.24222"
    image, boxes = ({a.get("id", a["type"]): a for a in t["axes"]} for t in rdf["inputs"])
    assert image["channel"]["channel_names"] == ["DAPI", "GFP"]
    assert image["level"] == {"type": "index", "id": "level", "size": 2,
                              "description": "Downsampling 1, 4"}
    assert image["x"] == {"type": "space", "id": "x", "size": 32, "unit": "micrometer",
                          "scale": 0.3}
    assert [boxes[name]["size"] for name in ("level", "edge", "axis")] == [2, 2, 2]
    assert rdf["outputs"][0]["axes"][1]["channel_names"] == ["background", "Gefäß"]
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| 1 | 7 | Gefäß |" in text
    assert "p99.8" in text
    assert "The weights are under CC-BY-4.0" in text
    assert "mDSC: 0.5" in text


def test_without_a_licence_the_codes_is_named_and_explained(tmp_path: Path) -> None:
    save_bioimageio(tmp_path, models("official")[0])
    assert read(tmp_path)["license"] == "BSD-3-Clause"
    assert "no other was given" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    model = models("official")[0]
    for about, words in (
        (About(name="x"), "5 to 128 letters"), (About(license="my own"), "SPDX"),
        (About(authors=("a/b",)), "without '/'"),
    ):
        with pytest.raises(InputError, match=words):
            save_bioimageio(tmp_path / "package", model, about=about)
    with pytest.raises(CheckpointError, match="a Linear cannot be exported"):
        save_bioimageio(tmp_path / "package", torch.nn.Linear(1, 1))
    assert not (tmp_path / "package").exists()
    (tmp_path / "something").touch()
    with pytest.raises(CheckpointError, match="not empty"):
        save_bioimageio(tmp_path, model)
    save_model(tmp_path / "model", model, ModelMeta("encoder"))
    with pytest.raises(InputError, match="official format has no place for license"):
        api.export(tmp_path / "model", tmp_path / "out", license="MIT")
    with pytest.raises(InputError, match="known are 'official' and 'bioimageio'"):
        api.export(tmp_path / "model", tmp_path / "out", format="onnx")


def test_damaged_and_foreign_packages_are_refused(tmp_path: Path) -> None:
    save_bioimageio(tmp_path, models("official")[0])
    whole = (tmp_path / "rdf.yaml").read_text(encoding="utf-8")
    for old, new, words in (
        ("import_from: napari_muvit.models.bioimageio", "import_from: os", "names the architectur"),
        ("pytorch_state_dict:", "torchscript:", "no package of ours"),
        ("dim: 48", "dim: 96", "do not fit"), ("heads: 2", "heads: 5", "cannot be built"),
        ("in_channels", "channels", "cannot be built"),
    ):
        assert old in whole
        (tmp_path / "rdf.yaml").write_text(whole.replace(old, new), encoding="utf-8")
        with pytest.raises(CheckpointError, match=words):
            load_bioimageio(tmp_path)
    (tmp_path / "rdf.yaml").write_text(whole, encoding="utf-8")
    weights = tmp_path / "weights.pt"
    weights.write_bytes(weights.read_bytes() + b"more")
    with pytest.raises(CheckpointError, match="sha256 differs"):
        load_bioimageio(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"no .*weights.pt"):
        load_bioimageio(tmp_path)


@pytest.mark.parametrize("kind", ["bioimageio", "official"])
@pytest.mark.parametrize("is_there", [False, True])
def test_a_full_disk_leaves_nothing_of_an_export(
    kind: str, is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "model", Encoder(**SMALL), ModelMeta("encoder"))
    target = tmp_path / "exported"
    if is_there and kind == "bioimageio":
        target.mkdir()
    before = sorted(tmp_path.iterdir())

    def fail(state: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", fail)
        with pytest.raises(OSError, match="No space"):
            api.export(tmp_path / "model", target, kind)
    assert sorted(tmp_path.iterdir()) == before
    assert not target.exists() or not any(target.iterdir())
    api.export(tmp_path / "model", target, kind)
    assert isinstance(load_model(target), Encoder)
    assert sorted(tmp_path.iterdir()) == sorted({*before, target})
