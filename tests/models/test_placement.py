"""Features of coarser levels land where they lie in the world."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_muvit.geometry import crop_extents, patch_centres, place_boxes
from napari_muvit.models.placement import align, alignment


def _boxes(levels: tuple[float, ...], size: int, ndim: int, inner: float) -> np.ndarray:
    """Nested boxes; `inner` in [0, 1] moves the finest across the coarsest."""
    extents = crop_extents(levels, size, ndim, tuple(range(ndim)))
    corner = inner * (extents[-1:] - extents) + 1234.5
    return place_boxes(extents, corner=corner)


@settings(deadline=None, max_examples=30)
@given(
    inner=st.floats(0, 1), factor=st.sampled_from([2, 4, 8, 32]), ndim=st.integers(1, 3),
    grid=st.integers(2, 5),
)
def test_a_ramp_over_the_world_is_the_same_ramp_on_the_finest_grid(
    inner: float, factor: int, ndim: int, grid: int
) -> None:
    boxes = _boxes((1, factor), 8 * grid, ndim, inner)
    shape = (grid,) * ndim
    fine, coarse = torch.from_numpy(patch_centres(boxes, shape, "centre"))
    coarse_map = coarse.reshape(1, 1, *shape, ndim)
    matrices = alignment(torch.from_numpy(boxes)[None], shape, torch.float64)
    got = align(coarse_map, matrices).reshape(-1, ndim)
    # Beyond the outermost coarse centres the outermost patch counts alone.
    expected = torch.minimum(torch.maximum(fine, coarse.amin(0)), coarse.amax(0))
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_every_row_of_weights_sums_to_one_and_the_same_box_changes_nothing() -> None:
    boxes = torch.from_numpy(_boxes((1, 4), 32, 2, 0.3))[None]
    for matrix in alignment(boxes, (4, 4), torch.float64):
        torch.testing.assert_close(matrix.sum(-1), torch.ones(1, 1, 4, dtype=torch.float64))
    same = boxes[:, [0, 0]]
    for matrix in alignment(same, (4, 4), torch.float64):
        torch.testing.assert_close(matrix[0, 0], torch.eye(4, dtype=torch.float64))


def test_far_from_the_origin_nothing_changes() -> None:
    near = torch.from_numpy(_boxes((1, 8), 64, 2, 0.6))[None]
    for a, b in zip(
        alignment(near, (8, 8), torch.float32),
        alignment(near + 1_000_000.0, (8, 8), torch.float32), strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_axes_do_not_mix() -> None:
    boxes = torch.tensor([[[[0.0, 0.0], [8.0, 8.0]], [[0.0, -24.0], [32.0, 8.0]]]])
    rows = torch.arange(4.0)[:, None].expand(4, 4)
    maps = torch.stack([rows, rows.T], dim=-1)[None, None]
    got = align(maps, alignment(boxes, (4, 4), torch.float32))[0, 0]
    # Along the first axis the finest box is the coarse one's first quarter, along the second
    # its last.
    assert got[..., 0].max() < 1.0
    assert got[..., 1].min() > 2.0
