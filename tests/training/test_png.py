"""Previews show images as people know them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TINY

from napari_muvit.data.omezarr import create_pyramid
from napari_muvit.training.png import GAP, Contrast, tile_pictures, to_picture
from napari_muvit.training.start import start_finetune, start_pretrain

SIDE = 64


@pytest.fixture(scope="module")
def stained(tmp_path_factory):
    """A uint8 RGB image that is pink everywhere, between 150 and 255, and labels."""
    folder = tmp_path_factory.mktemp("stained")
    rng = np.random.default_rng(0)
    pixels = np.stack([rng.integers(low, low + 30, (SIDE, SIDE)) for low in (225, 150, 190)])
    places = {}
    for name, image, axes in (("image", pixels, "cyx"), ("labels", pixels[0] % 2, "yx")):
        places[name] = str(folder / f"{name}.ome.zarr")
        channels = ["Red", "Green", "Blue"] if axes == "cyx" else None
        [array] = create_pyramid(
            places[name], shape=image.shape, axes=axes, levels=(1,), dtype=np.uint8, chunk=32,
            channel_names=channels, is_labels=name == "labels")
        array[:] = image
    return places


def preview_of(run):
    import imagecodecs

    run.wait()
    folder = sorted((run.folder / "previews").glob("*.png"))
    picture = imagecodecs.png_decode(folder[-1].read_bytes())
    assert (picture[:16, :16, 3] == 255).all()
    return picture[..., :3]


def test_rgb_previews_have_the_images_colours(stained, tmp_path):
    options = {**TINY, "images": [stained["image"]], "steps": 1, "val_fraction": 0.0,
               "intensity_jitter": 0.9}
    pictures = [
        preview_of(start_pretrain({**options, "dim_decoder": 48, "output": str(tmp_path / "p")})),
        preview_of(start_finetune(
            {**options, "labels": [stained["labels"]], "output": str(tmp_path / "f")})),
    ]
    for picture in pictures:
        means = picture[:16, :16].reshape(-1, 3).mean(0)
        assert means == pytest.approx([239.5, 164.5, 204.5], abs=6)
    reconstruction = pictures[0][:16, 2 * (16 + GAP):][:, :16]
    assert reconstruction.min((0, 1)).tolist() == pytest.approx([225, 150, 190], abs=3)


def test_other_images_are_stretched_channel_by_channel():
    image = torch.zeros(1, 2, 2, 8, 8)
    image[:, :, 0] = torch.linspace(0, 1, 64).reshape(8, 8)
    image[:, :, 1] = torch.linspace(5, 90, 64).reshape(8, 8)
    low, high = Contrast().of_first({"img": image})
    picture = to_picture(image[0, 0].numpy(), low, high)
    assert np.array_equal(picture[..., 0], picture[..., 1])  # magenta and green, alike
    assert (picture.min(), picture.max()) == (0, 255)


def test_each_image_has_its_own_range():
    ranges = {1: (np.zeros(3), np.full(3, 2.0))}
    batch = {"img": torch.rand(1, 1, 3, 4, 4), "image_index": torch.tensor([1])}
    assert Contrast(ranges).of_first(batch) is ranges[1]
    batch["image_index"][0] = 0
    assert Contrast(ranges).of_first(batch)[1].max() < 1


def test_what_is_no_panel_takes_the_colour_behind_it():
    panel = np.full((8, 8, 3), 7, np.uint8)
    whole = tile_pictures([[panel, panel], [panel]])
    assert whole.shape == (16 + GAP, 16 + GAP, 4)
    seen = whole[..., 3] == 255
    assert seen.sum() == 3 * 64
    assert (whole[seen][:, :3] == 7).all()
    assert (whole[~seen] == (255, 255, 255, 0)).all()
