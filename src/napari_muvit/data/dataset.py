"""Stage 2 of 7: training samples become tensors. The one part of ``data`` that needs torch.

`MuViTDataset` is the official project's contract, checked by a running sample when a dataset
is made. `PyramidDataset` draws nested crops from pyramids.

Axis letters: L levels, C channels, K classes, S spatial extent, A spatial axes.
"""

from __future__ import annotations

from abc import ABC, ABCMeta, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from napari_muvit.config import RunConfig
from napari_muvit.data.labels import ClassTable
from napari_muvit.data.samples import SampleSource
from napari_muvit.data.sampling import Split
from napari_muvit.errors import ChannelError, InputError

if TYPE_CHECKING:
    from napari_muvit.data.pyramid import Pyramid


class _CheckedWhenMade(ABCMeta):
    """Runs `_sanity_check` on every dataset as soon as its ``__init__`` is through."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        made._sanity_check()
        return made


class MuViTDataset(Dataset[dict[str, Any]], ABC, metaclass=_CheckedWhenMade):
    """Base of datasets that MuViT can train on; the official project's contract.

    A subclass gives ``__len__``, ``ndim`` (spatial axes), ``levels`` (ascending), ``n_channels``
    and ``__getitem__``, which returns a dict with at least

    ``img``
        (L, C, *S) float tensor, one crop for each level.
    ``bbox``
        (L, 2, A) float tensor of [min, max] outer edges in world px, or None.

    Raises
    ------
    ValueError
        When a dataset is made whose first sample is not like that.
    """

    @abstractmethod
    def __getitem__(self, idx: int) -> dict[str, Any]: ...

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def ndim(self) -> int:
        """Number of spatial axes: 2, 3 or 4."""

    @property
    @abstractmethod
    def levels(self) -> tuple[int | float, ...]:
        """Downsampling factors, ascending."""

    @property
    @abstractmethod
    def n_channels(self) -> int:
        """Number of channels of every crop."""

    @property
    def n_levels(self) -> int:
        """Number of levels."""
        return len(self.levels)

    def _sanity_check(self) -> None:
        """Compare the first sample with what the properties promise."""
        if self.ndim not in (2, 3, 4):
            raise InputError(f"ndim is {self.ndim}; it must be 2, 3 or 4 spatial axes.")
        if len(self) == 0:
            raise InputError("the dataset is empty; it needs at least one sample.")
        sample = self[0]
        missing = [key for key in ("img", "bbox") if key not in sample]
        if missing:
            raise InputError(
                f"the sample has the keys {', '.join(sample)}; {' and '.join(missing)} must be "
                "there too."
            )
        check_sample_shapes(sample["img"], sample["bbox"], self)

    def visualize_sample(
        self, idx: int = 0, save_file: Any = None, view: str = "yx",
        continuous_label_cmap: Any = None,
    ) -> NDArray[np.uint8]:
        """A picture (H, W, 3) of one sample: each level's crop, boxes of finer levels drawn in.

        Parameters
        ----------
        save_file
            Where to write the picture as well.
        view
            Plane of a volume that is shown: yx, zx or zy.
        continuous_label_cmap
            matplotlib's name of a colour map for a ``label`` that is no class.
        """
        from napari_muvit.data.sample_picture import draw_sample, save_picture

        picture = draw_sample(self[idx], self.ndim, view, continuous_label_cmap)
        if save_file is not None:
            save_picture(picture, save_file)
        return picture


def check_sample_shapes(img: Any, bbox: Any, dataset: MuViTDataset) -> None:
    """Refuse a sample whose shapes are not those that its dataset promises."""
    num_levels, num_axes = dataset.n_levels, dataset.ndim
    if bbox is not None and tuple(bbox.shape) != (num_levels, 2, num_axes):
        raise InputError(
            f"bbox has the shape {tuple(bbox.shape)}; levels {tuple(dataset.levels)} and ndim "
            f"{num_axes} need ({num_levels}, 2, {num_axes}). Pass one box per level, e.g. "
            "crop.bbox."
        )
    if img.ndim != num_axes + 2:
        raise InputError(
            f"img has {img.ndim} axes, {tuple(img.shape)}; ndim {num_axes} needs "
            f"{num_axes + 2}: levels, channels, then space."
        )
    if img.shape[0] != num_levels:
        raise InputError(
            f"img has the shape {tuple(img.shape)}, so {img.shape[0]} levels; the dataset says "
            f"levels {tuple(dataset.levels)}."
        )
    if img.shape[1] != dataset.n_channels:
        raise ChannelError(
            f"img has {img.shape[1]} channels; the dataset says n_channels {dataset.n_channels}."
        )


class PyramidDataset(MuViTDataset):
    """Random nested crops of pyramids as tensors, augmented and normalised.

    Arguments are those of `SampleSource`, and `length`: how many samples count as the
    dataset's length (any index is allowed; by default the config's epoch).
    """

    def __init__(
        self, pyramids: Sequence[Pyramid], labels: Sequence[Pyramid] | None = None, *,
        config: RunConfig, class_table: ClassTable | None = None, split: Split = "all",
        length: int | None = None, augment: bool | None = None, seed: int | None = None,
        stream: int | None = None, fractions: bool | None = None,
        pixel_size: tuple[float, ...] | None = None,
    ) -> None:
        self.samples = SampleSource(
            pyramids, labels, config=config, class_table=class_table, split=split,
            augment=augment, seed=seed, stream=stream, fractions=fractions,
            pixel_size=pixel_size,
        )
        self.length = config.epoch_size if length is None else length

    def __len__(self) -> int:
        return self.length

    @property
    def ndim(self) -> int:
        return self.samples.ndim

    @property
    def levels(self) -> tuple[int | float, ...]:
        return tuple(self.samples.config.levels)

    @property
    def n_channels(self) -> int:
        return self.samples.num_channels

    @property
    def class_table(self) -> ClassTable | None:
        """What the targets' class indices mean; None without labels."""
        return self.samples.class_table

    @property
    def num_classes(self) -> int:
        """Number of classes K of the targets; 0 without labels."""
        return self.samples.num_classes

    @property
    def fractions(self) -> bool:
        """Whether samples hold class fractions of every patch."""
        return self.samples.fractions

    @property
    def advice(self) -> list[str]:
        """One sentence for each image whose coarse crops are mostly outside it."""
        return self.samples.advice

    def __getitem__(self, idx: int) -> dict[str, Any]:
        sample = self.samples.sample(int(idx))
        return {
            key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for key, value in sample.items()
        }


def make_loader(
    dataset: Dataset[Any], batch_size: int, workers: int = 0, *, start: int = 0,
    stop: int | None = None,
) -> DataLoader[Any]:
    """Batches of samples ``start`` to ``stop`` (by default the dataset's length), in order.

    For loops of one's own; runs have `training.loader`. Workers are spawned, never forked, and
    stay alive between passes; each opens its stores itself.
    """
    end = len(dataset) if stop is None else stop  # type: ignore[arg-type]
    parallel: dict[str, Any] = {}
    if workers > 0:
        parallel = {"multiprocessing_context": "spawn", "persistent_workers": True,
                    "prefetch_factor": 4}
    return DataLoader(
        dataset, batch_size=batch_size, sampler=range(start, end), num_workers=workers, **parallel)
