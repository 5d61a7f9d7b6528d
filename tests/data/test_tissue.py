"""Where tissue is."""

from __future__ import annotations

import tracemalloc

import dask.array as da
import numpy as np
import pytest
from scipy import ndimage
from skimage.io import imread, imsave

from napari_muvit.data import tissue
from napari_muvit.data.omezarr import create_pyramid
from napari_muvit.data.pyramid import open_pyramid, pyramid_from_arrays
from napari_muvit.data.tissue import coarse_view, find_tissue, tissue_places
from napari_muvit.errors import InputError

SHAPE = (300, 400)


def disc(shape=SHAPE):
    y, x = np.indices(shape)
    return (y - shape[0] / 2) ** 2 + (x - shape[1] / 2) ** 2 < (min(shape) / 3) ** 2


def noise(seed=0, shape=SHAPE):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 2)
    return (smooth - smooth.min()) / np.ptp(smooth)


def brightfield():
    """A stained disc on glass, RGB."""
    image = np.full((*SHAPE, 3), 240.0)
    stain = np.array([60, 140, 70]) * noise()[..., None] + 20
    image[disc()] -= stain[disc()]
    image += np.random.default_rng(1).normal(0, 2, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def fluorescence():
    """A dim disc with bright spots on a dark field, two channels."""
    image = np.zeros((2, *SHAPE))
    image[0, disc()] = 300 + 3000 * (noise()[disc()] > 0.7)
    image[1, disc()] = 200
    return (image + np.random.default_rng(1).normal(50, 8, image.shape)).clip(0).astype(np.uint16)


@pytest.mark.parametrize(
    "pyramid",
    [
        pytest.param(lambda: open_pyramid(brightfield()), id="brightfield"),
        pytest.param(lambda: pyramid_from_arrays([fluorescence()], axes="cyx"), id="fluorescence"),
    ],
)
def test_tissue_is_found_on_glass_and_in_the_dark(pyramid):
    found = find_tissue(pyramid())
    points = np.argwhere(np.ones(SHAPE))
    held = found.holds(points).reshape(SHAPE)
    truth = disc()
    assert held[truth].mean() > 0.99
    assert held[~truth].mean() < 0.12


@pytest.mark.parametrize(
    "image", [(noise() * 200).astype(np.uint8), np.zeros(SHAPE, np.uint8),
              np.full(SHAPE, np.nan, np.float32), np.eye(4, dtype=np.uint8)],
)
def test_an_image_without_empty_places_is_tissue_throughout(image):
    found = find_tissue(open_pyramid(image))
    assert found.mask.shape == (1, 1)
    assert found.mask.all()


def test_pictures_full_of_tissue_are_not_split(real_data):
    for path in sorted((real_data / "segmentation/oral_tumour_he/images").iterdir())[:3]:
        assert find_tissue(open_pyramid(str(path))).mask.size == 1


def test_labelled_cortex_lies_in_the_tissue(real_data):
    folder = real_data / "segmentation/human_cortex_layers"
    path = sorted((folder / "images").iterdir())[0]
    labels = imread(folder / "labels" / path.name)
    held = find_tissue(open_pyramid(str(path))).holds(np.argwhere(labels > 0))
    assert held.mean() > 0.98


def test_huge_images_without_coarse_arrays_are_probed(monkeypatch):
    monkeypatch.setattr(tissue, "VIEW_PIXELS", 1000)
    monkeypatch.setattr(tissue, "READ_PIXELS", 10_000)
    pyramid = pyramid_from_arrays([fluorescence()], axes="cyx")
    view, _, cell = coarse_view(pyramid)
    assert view.shape[1] * view.shape[2] <= 48 * 48
    assert cell[1] * view.shape[2] == pytest.approx(400)
    found = find_tissue(pyramid)
    assert found.holds((150, 200))
    assert not found.holds((5, 5))


def test_views_of_large_arrays_are_averaged(monkeypatch):
    monkeypatch.setattr(tissue, "VIEW_PIXELS", 1000)
    image = np.arange(60 * 90, dtype=np.float32).reshape(60, 90)
    view, origin, cell = coarse_view(open_pyramid(image))
    assert cell.tolist() == [3, 3]
    assert origin.tolist() == [-0.5, -0.5]
    np.testing.assert_allclose(view[0, 0, 0], image[:3, :3].mean())


def test_volumes_keep_their_planes():
    image = np.zeros((6, 80, 80), np.uint16)
    image[2:4, 20:60, 20:60] = 1000
    image += np.random.default_rng(0).integers(0, 20, image.shape).astype(np.uint16)
    found = find_tissue(pyramid_from_arrays([image], axes="zyx"))
    assert found.holds((3, 40, 40))
    assert not found.holds((3, 2, 2))


def test_given_masks_of_any_resolution(tmp_path):
    mask = np.zeros((75, 100), np.uint8)
    mask[:, 50:] = 255
    path = tmp_path / "slide.png"
    imsave(path, mask, check_contrast=False)
    image = open_pyramid(np.zeros(SHAPE, np.uint8)).renamed("slide.ome.tif")
    for source in (path, tmp_path):
        found = tissue_places(str(source), image)
        assert found.holds([(10, 300), (10, 100)]).tolist() == [True, False]
    assert tissue_places("none", image).mask.all()


def peak_bytes(function):
    """What a function returns, and the most bytes that it held."""
    tracemalloc.start()
    try:
        found = function()
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_large_mask_without_coarse_arrays_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(tissue, "READ_PIXELS", 1 << 16)
    side = 8150  # no multiple of the 32 px of a cell
    (array,) = create_pyramid(tmp_path / "mask.ome.zarr", shape=(side, side), axes="yx",
                              levels=(1,), dtype="uint8", chunk=1024)
    array[2049, 3000] = 1
    array[side - 1, side - 1] = 1
    image = pyramid_from_arrays([da.zeros((2 * side, 2 * side), np.uint8)], axes="yx")
    found, peak = peak_bytes(lambda: tissue_places(str(tmp_path / "mask.ome.zarr"), image))
    assert peak < 30 << 20
    assert found.mask.shape == (255, 255)
    assert np.argwhere(found.mask).tolist() == [[64, 93], [254, 254]]
    inside = [(2 * 2049, 2 * 3000), (2 * side - 1, 2 * side - 1)]
    assert found.holds(inside).all()
    assert not found.holds((2 * 2049, 2 * 3040))


def test_views_of_many_channels_take_no_more_memory_than_few(monkeypatch):
    monkeypatch.setattr(tissue, "VIEW_PIXELS", 1 << 10)
    monkeypatch.setattr(tissue, "READ_PIXELS", 1 << 18)
    image = np.random.default_rng(0).integers(0, 999, (64, 512, 512)).astype(np.uint16)
    pyramid = pyramid_from_arrays([image], axes="cyx")
    (view, _, cell), peak = peak_bytes(lambda: coarse_view(pyramid))
    assert peak < image.nbytes // 4
    assert cell.tolist() == [16, 16]
    expected = image.reshape(64, 32, 16, 32, 16).mean(axis=(2, 4), dtype=np.float32)
    np.testing.assert_array_equal(view, expected)


def save_halves(folder, left, right):
    """Two masks: one of the left half, one of the right half."""
    for name, part in ((left, slice(0, 50)), (right, slice(50, 100))):
        mask = np.zeros((75, 100), np.uint8)
        mask[:, part] = 255
        imsave(folder / name, mask, check_contrast=False)


def test_names_with_dots_find_the_mask_of_their_own(tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    save_halves(masks, "2024.05.12_a.png", "2024.05.12_b.png")
    (masks / "2024.05.12_b.geojson").write_text("{}")
    image = np.zeros(SHAPE, np.uint8)
    for name in ("2024.05.12_b.ome.tif", "2024.05.12_b.png"):
        imsave(tmp_path / name, image, check_contrast=False)
        found = tissue_places(str(masks), open_pyramid(str(tmp_path / name)))
        assert found.holds([(10, 300), (10, 100)]).tolist() == [True, False]


def test_a_store_finds_the_mask_of_its_file_and_else_of_its_title(tmp_path):
    create_pyramid(tmp_path / "s1.ome.zarr", shape=SHAPE, axes="yx", levels=(1,), dtype="uint8",
                   name="Case 1")
    image = open_pyramid(str(tmp_path / "s1.ome.zarr"))
    masks = tmp_path / "masks"
    masks.mkdir()
    with pytest.raises(InputError, match=r"Add s1\.png"):
        tissue_places(str(masks), image)
    save_halves(masks, "Case 1.png", "other.png")
    assert tissue_places(str(masks), image).holds((10, 100))
    save_halves(masks, "other.png", "s1.png")
    assert tissue_places(str(masks), image).holds((10, 300))


def test_several_masks_of_one_name_are_refused(tmp_path):
    save_halves(tmp_path, "slide.png", "slide.tif")
    image = open_pyramid(np.zeros(SHAPE, np.uint8)).renamed("slide")
    with pytest.raises(InputError, match=r"2 tissue masks .* slide\.png, slide\.tif"):
        tissue_places(str(tmp_path), image)


def test_masks_that_do_not_fit_are_refused(tmp_path):
    image = open_pyramid(np.zeros(SHAPE, np.uint8)).renamed("slide")
    imsave(tmp_path / "square.png", np.ones((50, 50), np.uint8), check_contrast=False)
    with pytest.raises(InputError, match="aspect ratio"):
        tissue_places(str(tmp_path / "square.png"), image)
    imsave(tmp_path / "empty.png", np.zeros((30, 40), np.uint8), check_contrast=False)
    with pytest.raises(InputError, match="0 everywhere"):
        tissue_places(str(tmp_path / "empty.png"), image)
    with pytest.raises(InputError, match=r"Add slide\.png"):
        tissue_places(str(tmp_path), image)


def test_a_flat_mask_of_a_volume_is_refused(tmp_path):
    imsave(tmp_path / "mask.png", np.full((50, 60), 255, np.uint8), check_contrast=False)
    volume = open_pyramid(np.zeros((9, 50, 60), np.uint8))
    with pytest.raises(InputError, match="covers the whole image"):
        tissue_places(str(tmp_path / "mask.png"), volume)
