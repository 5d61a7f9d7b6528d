"""Model folders: ours and the official project's."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import SafetensorError

from napari_muvit.errors import CheckpointError
from napari_muvit.models import checkpoint
from napari_muvit.models.checkpoint import ModelMeta, load_model, save_model, save_official
from napari_muvit.models.encoder import Encoder
from napari_muvit.models.mae import MAE
from napari_muvit.models.segmenter import Segmenter

SMALL = {"in_channels": 1, "levels": (1, 4), "patch_size": 4, "num_layers": 2, "dim": 48,
         "heads": 2}


def models() -> dict[str, torch.nn.Module]:
    options = {"token_coordinates": "centre", "rope_frequencies": "scales", "crop_size": (16, 16),
               "scaled_axes": (0, 1), "attention_mode": "coarse_to_fine"}
    return {
        "encoder": Encoder(**SMALL, **options, rotary_mode="shared"),
        "mae": MAE(**SMALL, dim_decoder=40, rotary_mode="fixed", masking_mode=(0.3, 0.7),
                   decoder_context="visible"),
        "segmenter": Segmenter(
            Encoder(**SMALL, **options), 3, head_dim=16, norm="group", temperature=1.7),
    }


META = {"crop_size": (16, 16), "scaled_axes": ("y", "x"), "pixel_size": (0.5, 0.5),
        "normalization": {"kind": "percentile", "percentiles": [1.0, 99.8]},
        "classes": {"unlabelled": 0}, "channel_names": ("DAPI",), "provenance": {"seed": 3}}


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("kind", ["encoder", "mae", "segmenter"])
def test_what_is_saved_is_loaded(tmp_path: Path, kind: str):
    model, meta = models()[kind], ModelMeta(kind, **META)
    save_model(tmp_path / "model", model, meta)
    loaded = load_model(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.yaml", "model.safetensors"]
    assert type(loaded) is type(model)
    assert loaded.meta == meta
    assert same_weights(loaded, model)
    assert not loaded.training
    encoder = getattr(model, "encoder", model)
    assert getattr(loaded, "encoder", loaded).config() == encoder.config()
    assert getattr(loaded, "temperature", None) == (1.7 if kind == "segmenter" else None)


def test_shared_frequencies_stay_shared(tmp_path: Path):
    save_model(tmp_path, models()["encoder"], ModelMeta("encoder"))
    loaded = load_model(tmp_path)
    assert loaded.layers[0].rotary_pos_embs is loaded.layers[1].rotary_pos_embs


def test_saving_twice_gives_the_same_files(tmp_path: Path):
    model = models()["mae"]
    for name in ("a", "b"):
        save_model(tmp_path / name, model, ModelMeta("mae"))
    for name in ("config.yaml", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("crashed_at", ["model.safetensors", "config.yaml"])
def test_a_crash_while_replacing_leaves_a_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crashed_at: str
):
    """Other sizes before and after: any mixture of the two could not be loaded."""
    from napari_muvit.models import model_files

    before, after = Encoder(**SMALL), Encoder(**{**SMALL, "num_layers": 1})
    save_model(tmp_path, before, ModelMeta("encoder"))
    rename = model_files.os.replace

    def crash(source, target):
        if Path(target).name == crashed_at:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(model_files.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path, after, ModelMeta("encoder"))
    monkeypatch.undo()
    expected = before if crashed_at == "model.safetensors" else after
    assert same_weights(load_model(tmp_path), expected)
    save_model(tmp_path, after, ModelMeta("encoder"))
    assert same_weights(load_model(tmp_path), after)
    assert len(list(tmp_path.iterdir())) == 2


def test_edits_of_the_config_count(tmp_path: Path):
    save_model(tmp_path, models()["encoder"], ModelMeta("encoder", pixel_size=(1.0, 1.0)))
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace("- 1.0", "- 2.0"))
    assert load_model(tmp_path).meta.pixel_size == (2.0, 2.0)


def test_official_folders_round_trip(tmp_path: Path):
    for name, model in {
        "mae": MAE(**SMALL, dim_decoder=40), "encoder": Encoder(**SMALL, rotary_mode="shared")
    }.items():
        save_official(tmp_path / name, model)
        loaded = load_model(tmp_path / name)
        assert type(loaded) is type(model)
        assert loaded.meta is None
        assert same_weights(loaded, model)
        with pytest.raises(CheckpointError, match="already exists"):
            save_official(tmp_path / name, model)
        save_official(tmp_path / name, model, overwrite=True)


def test_old_official_folders_load(tmp_path: Path):
    save_official(tmp_path, Encoder(**SMALL, rotary_mode="none"), overwrite=True)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace("rotary_mode: none", "use_rotary_embed: false"))
    assert load_model(tmp_path).config()["rotary_mode"] == "none"
    path.write_text(path.read_text() + "rotary_mode: none\n")
    with pytest.raises(CheckpointError, match="only one may be there"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"attention_mode": "coarse_to_fine"}, "opposite direction"),
     ({"token_coordinates": "centre"}, "'span' formula only")],
)
def test_what_the_official_format_lacks_is_refused(tmp_path: Path, options, words):
    for model in (Encoder(**SMALL, **options), MAE(**SMALL, dim_decoder=40, **options)):
        with pytest.raises(CheckpointError, match=words):
            save_official(tmp_path / "out", model)
    with pytest.raises(CheckpointError, match="decoders look at all tokens"):
        save_official(tmp_path / "out", MAE(**SMALL, dim_decoder=40, decoder_context="visible"))
    with pytest.raises(CheckpointError, match="no segmentation heads"):
        save_official(tmp_path / "out", models()["segmenter"])
    assert not (tmp_path / "out").exists()


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_no_pickle_is_executed(tmp_path: Path):
    trap, folder = tmp_path / "trap", tmp_path / "model"
    save_official(folder, Encoder(**SMALL))
    torch.save({"x": Malicious(trap)}, folder / "model.pth")
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        load_model(folder)
    (folder / "model.pth").write_bytes(pickle.dumps(Malicious(trap), protocol=2))
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        load_model(folder)
    assert not trap.exists()
    for damage in (b"", b"PK\x03\x04 no archive", b"\x80\x02]q\x00."):
        (folder / "model.pth").write_bytes(damage)
        with pytest.raises(CheckpointError, match=r"model\.pth"):
            load_model(folder)
    torch.save([1, 2], folder / "model.pth")
    with pytest.raises(CheckpointError, match="does not hold tensors by name"):
        load_model(folder)
    (folder / "model.pth").unlink()
    with pytest.raises(CheckpointError, match="with load_model"):
        load_model(folder)


def test_no_yaml_object_is_built(tmp_path: Path):
    trap = tmp_path / "trap"
    save_official(tmp_path / "model", Encoder(**SMALL))
    path = tmp_path / "model" / "config.yaml"
    path.write_text(path.read_text() + f"x: !!python/object/apply:os.mkdir ['{trap}']\n")
    with pytest.raises(CheckpointError, match="no YAML of plain values"):
        load_model(tmp_path / "model")
    assert not trap.exists()


def test_damaged_folders_are_refused_in_a_sentence(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"holds no config.yaml"):
        load_model(tmp_path / "nothing")
    folder = tmp_path / "model"
    save_model(folder, models()["encoder"], ModelMeta("encoder"))
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(folder)
    weights.write_bytes(whole)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for change, words in (
        ({"format_version": 99}, "format_version 99"),
        ({"meta": {"kind": "segmentr"}}, "Did you mean 'segmenter'"),
        ({"model": {**config["model"], "dims": 3}}, "cannot be built"),
        ({"model": {**config["model"], "dim": 96}}, "do not fit"),
        ({"model": 3}, "cannot be built"),
    ):
        (folder / "config.yaml").write_text(yaml.safe_dump({**config, **change}))
        with pytest.raises(CheckpointError, match=words):
            load_model(folder)


def test_a_lost_config_is_restored_from_the_weights(tmp_path: Path):
    model = models()["encoder"]
    save_model(tmp_path, model, ModelMeta("encoder", **META))
    (tmp_path / "config.yaml").unlink()
    loaded = load_model(tmp_path)
    assert loaded.meta == ModelMeta("encoder", **META)
    assert same_weights(loaded, model)


def test_a_full_disk_is_an_error_of_the_system(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    save_model(tmp_path, models()["encoder"], ModelMeta("encoder"))
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="space") as caught:
        save_model(tmp_path, models()["encoder"], ModelMeta("encoder"))
    assert caught.value.errno == errno.ENOSPC
    assert load_model(tmp_path) is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.yaml", "model.safetensors"]
