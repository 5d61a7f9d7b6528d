"""Patches and their places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_muvit.errors import ChannelError, InputError
from napari_muvit.geometry import patch_centres
from napari_muvit.models.tokens import (
    Spread,
    check_boxes,
    check_image,
    naive_boxes,
    patch_grid,
    patchify,
    place_patches,
    unpatchify,
)

CPU = torch.device("cpu")


def places(bbox, grid, policy="centre", dtype=torch.float32, **options):
    return place_patches(
        bbox, grid, policy, coarsest=bbox.shape[1] - 1, device=CPU, dtype=dtype, **options)


@given(
    grid=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    patch=st.integers(1, 3), channels=st.integers(1, 3),
)
@settings(deadline=None, max_examples=25)
def test_unpatchify_undoes_patchify(grid, patch, channels):
    size = [n * patch for n in grid]
    x = torch.randn(2, channels, *size)
    patches = patchify(x, [patch] * len(grid))
    assert patches.shape == (2, int(np.prod(grid)), channels * patch ** len(grid))
    assert torch.equal(unpatchify(patches, [patch] * len(grid), channels, size), x)


def test_patches_are_in_raster_order_with_the_channel_last():
    x = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6)
    patches = patchify(x, (2, 3))
    corner = x[0, :, 2:4, 3:6]
    assert torch.equal(patches[0, 3], corner.permute(1, 2, 0).reshape(-1))


@given(
    seed=st.integers(0, 1000), policy=st.sampled_from(["centre", "span"]),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)), far=st.sampled_from([0.0, 1e6]),
)
@settings(deadline=None, max_examples=25)
def test_places_equal_geometry(seed, policy, grid, far):
    rng = np.random.default_rng(seed)
    lower = rng.uniform(-50, 50, (2, 3, 1, 2)) + far
    boxes = np.concatenate([lower, lower + rng.uniform(1, 99, (2, 3, 1, 2))], axis=2)
    found = places(torch.tensor(boxes), grid, policy, torch.float64)
    expected = patch_centres(boxes, grid, policy).reshape(2, -1, 2)
    assert np.allclose(found.absolute.numpy(), expected, rtol=0, atol=1e-8)
    whole = found.coords + found.origin[:, None]
    assert np.allclose(whole.numpy(), expected, rtol=0, atol=1e-8)


def test_origin_is_the_centre_of_the_coarsest_box():
    bbox = torch.tensor([[[[10.0, 20], [18, 28]], [[0, 0], [32, 64]]]], dtype=torch.float64)
    assert places(bbox, (2, 2)).origin.tolist() == [[16.0, 32.0]]


def test_float32_boxes_keep_the_official_origin_only_where_it_is_exact_enough():
    near = torch.tensor([[[[0.0, 0], [32, 32]]]])
    far = near + 100_000
    found = places(torch.cat([near, far]), (4, 4), "span")
    assert found.origin.tolist() == [[0.0, 0.0], [100_016.0, 100_016.0]]
    assert torch.equal(found.coords[0], found.absolute[0])
    assert found.coords[1].abs().max() == 16
    assert places(near, (4, 4), "centre").origin.tolist() == [[16.0, 16.0]]


def test_coordinates_returned_keep_the_dtype_of_the_boxes():
    bbox = torch.tensor([[[[0.0, 0], [32, 32]]]])
    for dtype in (torch.float32, torch.float64):
        found = places(bbox.to(dtype), (4, 4))
        assert found.absolute.dtype == dtype
        assert found.coords.dtype == torch.float32


def test_naive_boxes_of_both_policies():
    scales = ((1.0, 1.0), (4.0, 4.0))
    span = naive_boxes(scales, (16, 8), "span")
    centre = naive_boxes(scales, (16, 8), "centre")
    assert span.tolist() == [[[[-7.5, -3.5], [7.5, 3.5]], [[-30, -14], [30, 14]]]]
    assert centre.tolist() == [[[[-8, -4], [8, 4]], [[-32, -16], [32, 16]]]]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 2, 1, 8), "axes"),
        ((1, 3, 1, 8, 8), "3 levels; the model has 2"),
        ((2, 1, 8, 8), "image[None]"),
    ],
)
def test_images_of_another_form_are_refused(shape, words):
    with pytest.raises(InputError) as caught:
        check_image(torch.zeros(shape), 2, 1, 2)
    assert words in str(caught.value)


def test_channel_errors_are_runtime_errors_too():
    with pytest.raises(RuntimeError, match="3 channels; the model has 1") as caught:
        check_image(torch.zeros(1, 2, 3, 8, 8), 2, 1, 2)
    assert isinstance(caught.value, ChannelError)


def test_integer_images_are_refused():
    with pytest.raises(InputError, match=r"uint8; the model needs normalised"):
        check_image(torch.zeros(1, 2, 1, 8, 8, dtype=torch.uint8), 2, 1, 2)


@pytest.mark.parametrize("shape", [(4, 2, 2, 2), (1, 3, 2, 2), (1, 2, 2, 3), (2, 2)])
def test_boxes_of_another_shape_are_refused(shape):
    with pytest.raises(InputError, match=r"needs \(1, 2, 2, 2\). Pass one box per level"):
        check_boxes(torch.zeros(shape), 1, (1, 4), 2)


def test_a_patch_that_does_not_divide_the_crop_is_refused():
    with pytest.raises(InputError, match=r"Pass crops of \(16, 24\) px"):
        patch_grid((16, 23), (8, 8))
    assert patch_grid((16, 24), (8, 8)) == (2, 3)


def test_spread_puts_level_vectors_where_tokens_are_masked():
    visible = torch.tensor([[4, 0]])
    table = torch.tensor([[[10.0], [20.0], [-1.0], [-2.0]]])
    spread = Spread(visible, num_levels=2, grid=(3,))
    assert spread(table)[0, :, 0].tolist() == [20, -1, -1, -2, 10, -2]
    assert spread(table, slice(3, 6))[0, :, 0].tolist() == [-2, 10, -2]
    assert spread.is_masked.tolist() == [[[False, True, True], [True, False, True]]]


def test_spread_takes_each_sample_from_its_own_rows():
    spread = Spread(torch.tensor([[0], [1]]), num_levels=1, grid=(2,))
    table = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    assert spread(table)[..., 0].tolist() == [[1, 2], [4, 3]]


def test_places_along_axes_of_every_level():
    coords = place_patches(
        torch.tensor([[[[0.0, 10.0, 0.0], [1.0, 40.0, 5.0]], [[2.0, 0.0, 0.0], [4.0, 8.0, 1.0]]]]),
        (2, 3, 2), "span", coarsest=0, device=torch.device("cpu"), dtype=torch.float32,
    ).coords
    spread = Spread(torch.zeros(1, 0, dtype=torch.long), 2, (2, 3, 2))
    first, second, third = spread.along_axes(coords)
    assert first.tolist() == [[[0, 1], [2, 4]]]
    assert second.tolist() == [[[10, 25, 40], [0, 4, 8]]]
    assert third.tolist() == [[[0, 5], [0, 1]]]
