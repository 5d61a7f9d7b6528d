"""napari layers of every make as pyramids, and viewer coordinates (no Qt needed)."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from napari.layers import Image, Labels
from napari.layers._source import layer_source

from napari_muvit import api
from napari_muvit.errors import InputError
from napari_muvit.plugin import image_choices, layer_copies, layers, stored_images

PIXELS = np.random.default_rng(0).integers(0, 255, (64, 96), dtype=np.uint8)


def resolve(*images: Any, point: tuple[float, ...] = (0, 0)) -> layers.ResolvedImage:
    choice = image_choices.ImageChoice(images[0].name, images)
    return layers.resolve_image(choice, api, point)


def rotated(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    matrix = np.eye(3)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return matrix


@settings(deadline=None, max_examples=40)
@given(
    scale=st.floats(0.01, 100), shift=st.floats(-1e5, 1e5), turn=st.floats(0, 360),
    place=st.tuples(st.floats(0, 64), st.floats(0, 96)),
)
def test_world_and_viewer_are_inverse(
    scale: float, shift: float, turn: float, place: tuple[float, float]
) -> None:
    layer = Image(PIXELS, scale=(scale, 2 * scale), translate=(shift, -shift), affine=rotated(turn))
    transform = layers.viewer_transform(layer)
    viewer_place = transform.to_viewer(place)
    assert np.allclose(viewer_place, layer.data_to_world(place), rtol=1e-6, atol=1e-4 * scale)
    assert np.allclose(transform.to_world(viewer_place), place, atol=1e-3)


def test_new_layer_lies_on_the_image() -> None:
    place = {"scale": (0.5, 0.25), "translate": (3, 4), "affine": rotated(30)}
    image = Image(PIXELS, units=("um", "um"), **place)
    kwargs = layers.viewer_transform(image).layer_kwargs(factor=4, offset=1.5)
    labels = Labels(np.zeros((16, 24), np.uint8), **kwargs)
    assert np.allclose(labels.data_to_world((0, 0)), image.data_to_world((1.5, 1.5)))
    assert np.allclose(labels.data_to_world((3, 5)), image.data_to_world((13.5, 21.5)))
    assert labels.units == image.units


@pytest.mark.parametrize(("unit", "size"), [("um", 0.5), ("nm", 0.0005), ("mm", 500.0)])
def test_pixel_size_from_units(unit: str, size: float) -> None:
    layer = Image(PIXELS, scale=(0.5, 0.5), units=(unit, unit))
    assert layers.viewer_transform(layer).pixel_size_um == pytest.approx((size, size))


def test_pixels_have_no_size() -> None:
    assert layers.viewer_transform(Image(PIXELS)).pixel_size_um is None


def test_shear_is_refused() -> None:
    with pytest.raises(InputError, match="sheared"):
        layers.viewer_transform(Image(PIXELS, shear=[0.5]))


def test_plane_image() -> None:
    resolved = resolve(Image(PIXELS, name="a", scale=(0.5, 0.5), units=("um", "um")))
    assert resolved.pyramid.shape == (1, 64, 96)
    assert resolved.pyramid.pixel_size[0] == pytest.approx((0.5, 0.5))
    assert np.array_equal(resolved.pyramid.read(0, (0, 0), (64, 96))[0], PIXELS)
    assert resolved.path is None


def test_rgb_image() -> None:
    colours = np.stack([PIXELS, PIXELS // 2, 255 - PIXELS], axis=-1)
    resolved = resolve(Image(colours, rgb=True))
    assert resolved.pyramid.is_rgb
    assert resolved.display == ()
    assert np.array_equal(resolved.pyramid.read(0, (0, 0), (64, 96)), np.moveaxis(colours, -1, 0))


def test_multiscale_image() -> None:
    resolved = resolve(Image([PIXELS, PIXELS[::2, ::2], PIXELS[::4, ::4]], multiscale=True))
    assert [tuple(f) for f in resolved.pyramid.factors] == [(1, 1), (2, 2), (4, 4)]


def test_dask_image_is_not_computed_whole() -> None:
    def forbid(block: np.ndarray) -> np.ndarray:
        raise AssertionError("pixels were read")

    lazy = da.zeros((64, 96), chunks=32, dtype=np.uint8).map_blocks(
        forbid, meta=np.empty((0, 0), np.uint8))
    layer = SimpleNamespace(
        name="lazy", ndim=2, rgb=False, multiscale=False, data=lazy, dtype=lazy.dtype,
        units=("pixel", "pixel"), axis_labels=("-2", "-1"), source=SimpleNamespace(path=None),
        metadata={},
        data_to_world=lambda p: tuple(p), world_to_data=lambda p: np.asarray(p),
        contrast_limits=(0, 1), colormap=SimpleNamespace(colors=np.eye(4)),
    )
    assert resolve(layer).pyramid.shape == (1, 64, 96)


def test_plane_of_a_series_follows_the_slider() -> None:
    series = np.stack([np.full((32, 32), i, np.uint8) for i in range(5)])
    layer = Image(series, scale=(2, 1, 1))
    resolved = resolve(layer, point=(6, 0, 0))
    assert resolved.plane == {"z": 3}
    assert np.all(resolved.pyramid.read(0, (0, 0), (32, 32)) == 3)


def test_channels_of_one_file_are_one_image(tmp_path: Path) -> None:
    path = str(tmp_path / "gone.ome.zarr")
    with layer_source(path=path):
        members = [Image(PIXELS // n, name=f"c{n}", contrast_limits=(0, 100)) for n in (1, 2)]
    choices = image_choices.image_choices(members)
    assert [choice.name for choice in choices] == ["gone.ome.zarr (2 channels)", "c1", "c2"]
    resolved = layers.resolve_image(choices[0], api, (0, 0))
    assert resolved.pyramid.shape == (2, 64, 96)
    assert resolved.pyramid.channel_names == ("c1", "c2")
    assert np.array_equal(resolved.pyramid.read(0, (8, 8), (16, 16))[1], PIXELS[8:24, 8:24] // 2)
    assert resolved.display[0].limits == (0, 100)


def test_choices_offer_images_only() -> None:
    image, labels = Image(PIXELS, name="a"), Labels(np.zeros((4, 4), np.uint8))
    result = Image(PIXELS, name="confidence", metadata={image_choices.RESULT_KEY: True})
    assert [choice.name for choice in image_choices.image_choices([image, labels, result])] == ["a"]


def test_layers_that_agree_are_channels_of_one_image() -> None:
    place = {"scale": (0.5, 0.5), "units": ("um", "um")}
    members = [Image(PIXELS // n, name=f"c{n}", **place) for n in (1, 2, 3)]
    elsewhere = Image(PIXELS, name="moved", translate=(1, 0), **place)
    choices = image_choices.image_choices([*members, elsewhere])
    assert [c.name for c in choices] == ["3 layers as channels", "c1", "c2", "c3", "moved"]
    resolved = layers.resolve_image(choices[0], api, (0, 0))
    assert resolved.path is None
    assert resolved.pyramid.shape == (3, 64, 96)
    assert resolved.pyramid.channel_names == ("c1", "c2", "c3")
    assert resolved.pyramid.pixel_size[0] == pytest.approx((0.5, 0.5))
    crop = resolved.pyramid.crop(center=(32, 48), levels=(1, 2), size=16)
    assert np.array_equal(crop.image[0, 2], PIXELS[24:40, 40:56] // 3)


def test_volume_and_its_plane() -> None:
    stack = np.stack([PIXELS // n for n in (1, 2, 3, 4)])
    layer = Image(stack, scale=(3, 1, 1), translate=(30, 0, 0))
    choice = image_choices.ImageChoice("v", (layer,))
    assert choice.has_depth
    volume = layers.resolve_image(choice, api, (36, 0, 0), 3)
    assert volume.plane == {}
    assert volume.pyramid.shape == (1, 4, 64, 96)
    assert np.allclose(volume.transform.to_viewer((2, 5, 6)), (36, 5, 6))
    plane = layers.resolve_image(choice, api, (36, 0, 0))
    assert plane.plane == {"z": 2}
    assert np.array_equal(plane.pyramid.read(0, (0, 0), (64, 96))[0], stack[2])


def test_series_has_no_depth() -> None:
    layer = Image(np.zeros((4, 8, 8), np.uint8), axis_labels=("t", "y", "x"))
    assert not image_choices.ImageChoice("series", (layer,)).has_depth


def test_arrays_in_memory_are_told_apart() -> None:
    images = [Image(PIXELS), Image(PIXELS[::-1].copy()),
              Image(da.from_array(PIXELS)), Image(da.from_array(PIXELS + 1))]
    marks = [image_choices.ImageChoice("a", (image,)).identity for image in images]
    assert len(set(marks)) == 4
    assert image_choices.ImageChoice("other", (Image(PIXELS.copy()),)).identity == marks[0]
    stacks = [image_choices.ImageChoice("a", (images[0], image)) for image in images[1:3]]
    prints = [layers.resolve_image(stack, api, (0, 0)).pyramid.fingerprint for stack in stacks]
    assert prints[0] != prints[1]


def test_copy_of_an_image_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_images, "cache_folder", lambda: tmp_path)
    place = {"scale": (0.5, 0.5), "units": ("um", "um")}
    members = [Image(PIXELS // n, name=f"c{n}", **place) for n in (1, 2)]
    choice = image_choices.ImageChoice("a/b c", tuple(members))
    source = layer_copies.image_source(choice, api, (0, 0))
    assert source.store is not None
    assert not Path(source.path).exists()
    said = list(layer_copies.store_all([source]))
    assert "only in memory: 100%" in said[-1]
    again = layer_copies.image_source(choice, api, (0, 0))
    assert again == layer_copies.LayerSource(source.path, "a/b c")
    stored = api.open_pyramid(source.path)
    assert stored.pixel_size[0] == pytest.approx((0.5, 0.5))
    assert np.array_equal(stored.read(0, (0, 0), (64, 96)), [PIXELS, PIXELS // 2])
    resolved = layers.resolve_image(choice, api, (0, 0))
    assert resolved.path == source.path


def test_copy_of_labels_follows_their_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_images, "cache_folder", lambda: tmp_path)
    image = image_choices.ImageChoice("image", (Image(PIXELS),))
    labels = Labels(np.zeros((64, 96), np.uint8), name="drawn")
    first = layer_copies.labels_source(labels, image, api, (0, 0))
    labels.data[5, 7] = 2
    second = layer_copies.labels_source(labels, image, api, (0, 0))
    assert first.path != second.path
    list(layer_copies.store_all([first, second]))
    stored = api.open_pyramid(second.path)
    assert stored.is_labels
    assert stored.read(0, (5, 7), (1, 1)).item() == 2
    moved = Labels(np.zeros((64, 96), np.uint8), translate=(10, 0))
    with pytest.raises(InputError, match="pixel by pixel"):
        layer_copies.labels_source(moved, image, api, (0, 0))


def test_too_many_axes_are_refused() -> None:
    with pytest.raises(InputError, match="Split"):
        resolve(Image(np.zeros((2, 2, 2, 8, 8), np.uint8)), point=(0, 0, 0, 0, 0))


def test_no_torch_in_widgets() -> None:
    import subprocess

    names = sorted(
        f"napari_muvit.plugin.{path.stem}" for path in Path(layers.__file__).parent.glob("*.py")
        if path.stem != "__init__"
    )
    assert "napari_muvit.plugin.train_widget" in names
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
