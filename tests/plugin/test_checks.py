"""What is said before a run starts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from napari_muvit import api
from napari_muvit.config import FinetuneConfig, PretrainConfig
from napari_muvit.errors import SourceError
from napari_muvit.plugin import checks, crops
from napari_muvit.plugin.remembered import remember

BASE = {"images": ("a.zarr",), "output": "run", "device": "cpu"}


def test_memory_grows_with_what_is_chosen() -> None:
    small = PretrainConfig(**BASE, preset="tiny", crop_size=(64,), batch_size=2)
    larger = [
        {"batch_size": 8}, {"crop_size": (256,)}, {"preset": "base"}, {"levels": (1, 2, 4, 8, 16)},
        {"masking_ratio": 0.5},
    ]
    least = checks.memory_bytes(small)
    for change in larger:
        values = {**small.model_dump(), **change}
        assert checks.memory_bytes(PretrainConfig.model_validate(values)) > least
    tuned = FinetuneConfig(**BASE, labels=("l.zarr",), preset="tiny", crop_size=(64,), batch_size=2)
    assert checks.memory_bytes(tuned) > least
    assert checks.memory_bytes(small, ndim=3) > least


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PretrainConfig(**BASE)
    monkeypatch.setattr(checks, "available_bytes", lambda device: (1e9, "in this computer"))
    assert "of 1 GB in this computer: take a smaller" in checks.memory_text(config)
    monkeypatch.setattr(checks, "available_bytes", lambda device: (1e15, "in this computer"))
    assert checks.memory_text(config).endswith("in this computer.")
    monkeypatch.setattr(checks, "available_bytes", lambda device: (None, ""))
    assert checks.memory_text(config).endswith("GB of memory.")


def test_advice_is_given_once_and_unreadable_images_are_left_to_the_start() -> None:
    def open_pyramid(path: str, **options: Any) -> Any:
        if path == "gone":
            raise SourceError("there is no file.")
        return SimpleNamespace(ndim=2)

    backend = SimpleNamespace(
        open_pyramid=open_pyramid, advise_levels=lambda *given: "crops are too large."
    )
    config = PretrainConfig(**{**BASE, "images": ("a.tif", "b.tif", "gone", "list.csv")})
    said = checks.advise(backend, config)
    assert said.startswith("Crops are too large. Needs about ")


@pytest.mark.parametrize(("kind", "z", "words"), [
    (PretrainConfig, None, "a model of volumes. For a 2D model of all planes, type 'all'"),
    (FinetuneConfig, None, "a 2D model of all planes with labels, type 'all' into Planes"),
    (PretrainConfig, "all", "All 30 planes of 'stack' are taken as 2D images. Needs"),
    (FinetuneConfig, "all", "Those of the 30 planes of 'stack' that have labels are taken"),
    (FinetuneConfig, 7, "Plane 7 of 'stack' is taken as a 2D image; what is painted on other"),
    (FinetuneConfig, (7, 9), "Planes 7, 9 of 'stack' are taken as 2D images; what is painted"),
])
def test_the_planes_of_a_volume_are_told(kind: Any, z: Any, words: str) -> None:
    judged = []
    plane = SimpleNamespace(ndim=2)
    volume = SimpleNamespace(
        ndim=3, name="stack", spatial_shape=(30, 64, 64), plane=lambda index: plane)
    backend = SimpleNamespace(
        open_pyramid=lambda path, **options: volume,
        advise_levels=lambda pyramid, *given: judged.append(pyramid),
    )
    options = {**BASE, "z": z, **({"labels": ("l.zarr",)} if kind is FinetuneConfig else {})}
    assert words in checks.advise(backend, kind.model_validate(options))
    assert judged == [volume if z is None else plane]


def test_levels_are_suggested_as_in_crops(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    image = str(tmp_path / "slide.ome.zarr")
    api.create_pyramid(image, shape=(3000, 3000), axes="yx", levels=(1, 2), dtype="uint8")
    table = tmp_path / "cohort.csv"
    table.write_text(f"image,split\n{image},train\n", encoding="utf-8")
    for path in (image, str(table)):
        assert checks.suggest_options(api, path) == {"levels": (1, 8), "crop_size": (256,)}
    with monkeypatch.context() as patch:
        patch.setattr(crops, "preference", lambda name, default: "2, 4")
        assert checks.suggest_options(api, image) == {"levels": (2, 4), "crop_size": (256,)}
    remember(image, levels="1, 2", crop_size=64)
    for path in (image, str(table)):
        assert checks.suggest_options(api, path) == {"levels": (1, 2), "crop_size": (64,)}
    assert checks.suggest_options(api, str(tmp_path / "gone.ome.zarr")) == {}


def test_a_pretrained_model_that_is_not_there_is_said(tmp_path: Path) -> None:
    def said(place: str | None) -> list[str]:
        return checks.pretrained_words(FinetuneConfig(**BASE, labels=("l",), pretrained=place))

    assert said(None) == said(str(tmp_path)) == said("hf://owner/name") == []
    (words,) = said(str(tmp_path / "gone"))
    assert "gone' does not exist" in words
    assert checks.pretrained_words(PretrainConfig(**BASE)) == []
