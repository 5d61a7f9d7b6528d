"""What the official dataset contract accepts, ours accepts; what it refuses, ours refuses."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch

from napari_muvit.data.dataset import MuViTDataset

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def official():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("muvit.data", reason="needs the extra bench").MuViTDataset


def define(base):
    """The README's dataset on top of one of the two bases."""

    class Given(base):
        def __init__(self, sample, ndim, levels, channels, length):
            super().__init__()
            self.given = sample, ndim, levels, channels, length

        def __getitem__(self, idx):
            return self.given[0]

        def __len__(self):
            return self.given[4]

        @property
        def ndim(self):
            return self.given[1]

        @property
        def levels(self):
            return self.given[2]

        @property
        def n_channels(self):
            return self.given[3]

    return Given


def outcome(kind, *args):
    """What happens when such a dataset is made."""
    try:
        made = kind(*args)
    except ValueError:
        return "refused"
    return made.n_levels, len(made), made.ndim


def test_both_contracts_agree(official):
    ours, theirs = define(MuViTDataset), define(official)
    images = [(2, 1, 8, 8), (2, 1, 8, 8, 8), (3, 1, 8, 8), (2, 2, 8, 8), (2, 1, 8), (2, 1, 4, 6)]
    boxes = [None, (2, 2, 2), (2, 2, 3), (3, 2, 2), (2, 4), (1, 2, 2, 2)]
    seen = set()
    for image, box, ndim, levels in itertools.product(
        images, boxes, (1, 2, 3, 4), ((1, 8), (1, 8, 32))
    ):
        sample = {"img": torch.zeros(image), "bbox": None if box is None else torch.zeros(box)}
        args = (sample, ndim, levels, 1, 5)
        found = outcome(ours, *args)
        assert found == outcome(theirs, *args), (image, box, ndim, levels)
        seen.add(found)
    assert len(seen) > 2
    for args in (({"img": torch.zeros(2, 1, 8, 8)}, 2, (1, 8), 1, 5),
                 ({"img": torch.zeros(2, 1, 8, 8), "bbox": None}, 2, (1, 8), 1, 0)):
        assert outcome(ours, *args) == outcome(theirs, *args) == "refused"


def test_public_members_of_the_official_base_are_there(official):
    public = {name for name in vars(official) if not name.startswith("_")}
    assert public <= {name for name in dir(MuViTDataset) if not name.startswith("_")}
