"""Datasets and loaders: the official contract, and the same samples however they are read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.io import imread

from napari_muvit.config import FinetuneConfig
from napari_muvit.data.dataset import MuViTDataset, PyramidDataset, make_loader
from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.errors import ChannelError, InputError


class Minimal(MuViTDataset):
    """As little as the official contract asks for."""

    def __init__(self, sample=None, ndim=2, levels=(1, 4), channels=1, length=3):
        super().__init__()
        self._given = sample, ndim, levels, channels, length

    def __getitem__(self, idx):
        sample = self._given[0]
        return self.good() if sample is None else sample

    def good(self):
        space = (8,) * self.ndim
        return {"img": torch.zeros(self.n_levels, self.n_channels, *space),
                "bbox": torch.zeros(self.n_levels, 2, self.ndim)}

    def __len__(self):
        return self._given[4]

    @property
    def ndim(self):
        return self._given[1]

    @property
    def levels(self):
        return self._given[2]

    @property
    def n_channels(self):
        return self._given[3]


@pytest.mark.parametrize("ndim", [2, 3, 4])
def test_what_the_official_contract_accepts(ndim):
    assert Minimal(ndim=ndim).n_levels == 2
    without_boxes = {"img": torch.zeros(2, 1, *(8,) * ndim), "bbox": None, "more": "things"}
    assert len(Minimal(without_boxes, ndim=ndim)) == 3


@pytest.mark.parametrize(
    ("kwargs", "words", "kind"),
    [
        ({"ndim": 1}, "2, 3 or 4", InputError),
        ({"length": 0}, "empty", InputError),
        ({"sample": {"img": torch.zeros(2, 1, 8, 8)}}, "bbox must be there", InputError),
        ({"sample": {"img": torch.zeros(2, 1, 8, 8), "bbox": torch.zeros(4, 2, 2, 2)}},
         r"shape \(4, 2, 2, 2\).*need \(2, 2, 2\)", InputError),
        ({"sample": {"img": torch.zeros(2, 8, 8), "bbox": None}}, "3 axes", InputError),
        ({"sample": {"img": torch.zeros(3, 1, 8, 8), "bbox": None}}, "3 levels", InputError),
        ({"sample": {"img": torch.zeros(2, 2, 8, 8), "bbox": None}}, "2 channels", ChannelError),
    ],
)
def test_what_it_refuses(kwargs, words, kind):
    with pytest.raises(kind, match=words) as caught:
        Minimal(**kwargs)
    assert isinstance(caught.value, ValueError)


def test_abstract_methods_must_be_there():
    class Half(MuViTDataset):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Half()


@pytest.fixture
def dataset(tmp_path):
    from napari_muvit.data.omezarr import create_pyramid

    rng = np.random.default_rng(0)
    for name, top in (("image", 255), ("labels", 3)):
        pixels = rng.integers(0, top, (128, 160)).astype(np.uint8)
        create_pyramid(tmp_path / name, shape=pixels.shape, axes="yx", levels=1, dtype=np.uint8,
                       chunk=64)[0][:] = pixels
    config = FinetuneConfig(images=("a",), labels=("b",), output="o", levels=(1, 2), crop_size=32,
                            preset="tiny", tissue="none", epoch_size=12)
    return PyramidDataset([open_pyramid(str(tmp_path / "image"))],
                          [open_pyramid(str(tmp_path / "labels"))], config=config)


def test_samples_are_tensors(dataset):
    sample = dataset[0]
    assert len(dataset) == 12
    assert (dataset.ndim, dataset.n_channels, dataset.levels) == (2, 1, (1, 2))
    assert dataset.num_classes == 3
    assert dataset.class_table is not None
    assert sample["img"].shape == (2, 1, 32, 32)
    assert sample["img"].dtype == torch.float32
    assert sample["bbox"].dtype == torch.float64
    assert sample["valid"].dtype == torch.bool
    assert sample["target"].dtype == torch.int64
    assert sample["fractions"].shape == (2, 3, 4, 4)
    assert sample["image_index"] == 0
    assert dataset.fractions
    assert dataset.advice == []


def test_a_loader_starts_anywhere_and_gives_the_same_samples(dataset):
    whole = list(make_loader(dataset, 4))
    rest = list(make_loader(dataset, 4, start=4))
    assert len(whole) == 3
    assert len(rest) == 2
    torch.testing.assert_close(whole[1]["img"], rest[0]["img"], rtol=0, atol=0)
    beyond = next(iter(make_loader(dataset, 2, start=1000, stop=1002)))
    assert beyond["img"].shape == (2, 2, 1, 32, 32)


def test_any_number_of_spawned_workers_gives_the_same_samples(dataset):
    alone = list(make_loader(dataset, 4))
    loader = make_loader(dataset, 4, workers=2)
    for _ in range(2):
        for one, many in zip(alone, loader, strict=True):
            for key in one:
                torch.testing.assert_close(one[key], many[key], rtol=0, atol=0)


def test_a_sample_can_be_looked_at(dataset, tmp_path):
    picture = dataset.visualize_sample(1, tmp_path / "new" / "sample.png")
    assert picture.shape == (2 * 34, 34, 3)
    np.testing.assert_array_equal(imread(tmp_path / "new" / "sample.png"), picture)
    assert (picture[34:] == (228, 26, 28)).all(axis=-1).sum() > 20
    labelled = dict(Minimal().good(), label=torch.ones(2, 8, 8))
    assert Minimal(labelled).visualize_sample().shape == (20, 20, 3)
    volume = Minimal(ndim=3, channels=2)
    for view in ("yx", "zx", "zy"):
        assert volume.visualize_sample(view=view).shape == (20, 10, 3)
    with pytest.raises(InputError, match="zx"):
        volume.visualize_sample(view="xy")
