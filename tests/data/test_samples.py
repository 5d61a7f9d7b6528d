"""Training samples: what they hold, where they come from, and that seeds decide everything."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from napari_muvit.config import FinetuneConfig, PretrainConfig
from napari_muvit.data.annotations import open_annotations
from napari_muvit.data.labels import ClassTable, make_classes
from napari_muvit.data.omezarr import create_pyramid
from napari_muvit.data.pyramid import open_pyramid, pyramid_from_arrays
from napari_muvit.data.samples import SampleSource, check_boxes
from napari_muvit.errors import ChannelError, InputError

SHAPE = (300, 400)


def coded(shape=SHAPE):
    """An image whose pixels tell where they are: y in channel 0, x in channel 1."""
    return np.stack(np.indices(shape)).astype(np.float32)


def pretrain(**changes):
    given = {"images": ("a",), "output": "o", "levels": (1, 4), "crop_size": 32, "preset": "tiny",
             "normalization": "none", "tissue": "none", "intensity_jitter": 0.0}
    return PretrainConfig(**(given | changes))


def finetune(**changes):
    given = {"images": ("a",), "labels": ("b",), "output": "o", "levels": (1, 4), "crop_size": 32,
             "normalization": "none", "tissue": "none", "intensity_jitter": 0.0,
             "preset": "tiny"}
    return FinetuneConfig(**(given | changes))


def source(labels=None, config=None, image=None, **kwargs):
    pyramid = pyramid_from_arrays([coded() if image is None else image], axes="cyx")
    given = None if labels is None else [open_pyramid(labels)]
    chosen = config or (pretrain() if labels is None else finetune())
    return SampleSource([pyramid], given, config=chosen, **kwargs)


def pixel_centres(box, size):
    lines = [low + (np.arange(size) + 0.5) * (high - low) / size for low, high in box.T]
    return np.stack(np.meshgrid(*lines, indexing="ij"))


def test_pixels_lie_where_their_box_says():
    samples = source(config=pretrain(flip=False, rotate=False))
    for index in range(20):
        sample = samples.sample(index)
        for image, box, valid in zip(sample["img"], sample["bbox"], sample["valid"], strict=True):
            expected = pixel_centres(box, 32)
            np.testing.assert_allclose(image[:, valid], expected[:, valid], atol=1e-3)


def test_targets_follow_their_pixels_through_flips_and_turns():
    labels = np.arange(300 * 400).reshape(SHAPE) % 251 + 1
    table = ClassTable(make_classes(range(1, 252)), unlabelled=0)
    image = np.stack([labels, labels]).astype(np.float32)
    samples = source(labels.astype(np.uint8), image=image, class_table=table)
    for index in range(20):
        sample = samples.sample(index)
        judged = sample["target"] >= 0
        assert judged.mean() > 0.9
        np.testing.assert_allclose(sample["img"][0, 0][judged], sample["target"][judged] + 1)


def test_padding_is_zero_and_not_valid_and_never_judged():
    labels = np.ones((20, 20), np.uint8)
    samples = source(labels, image=coded((20, 20)) + 5, config=finetune(levels=(1, 2)))
    sample = samples.sample(0)
    assert sample["valid"][0].sum() == 400
    assert (sample["img"][:, :, ~sample["valid"][0]][0] == 0).all()
    assert (sample["target"][~sample["valid"][0]] == -1).all()
    assert (sample["target"][sample["valid"][0]] == 0).all()


def test_samples_depend_on_seed_and_index_alone():
    one, two = source(), source()
    two.sample(7)
    for index in (3, 0):
        a, b = one.sample(index), two.sample(index)
        np.testing.assert_array_equal(a["img"], b["img"])
        np.testing.assert_array_equal(a["bbox"], b["bbox"])
    other = source(seed=1).sample(3)
    assert not np.array_equal(one.sample(3)["bbox"], other["bbox"])
    copied = pickle.loads(pickle.dumps(one)).sample(3)
    np.testing.assert_array_equal(copied["img"], one.sample(3)["img"])


def test_validation_is_not_augmented_and_draws_other_crops():
    config = pretrain(intensity_jitter=0.5)
    sample = source(config=config, split="val").sample(0)
    expected = pixel_centres(sample["bbox"][0], 32)
    np.testing.assert_allclose(sample["img"][0], expected, atol=1e-3)
    assert not np.array_equal(
        sample["bbox"], source(config=config, augment=False).sample(0)["bbox"]
    )


def test_several_images_are_drawn_by_area_or_equally():
    pyramids = [pyramid_from_arrays([coded((64, 64))], axes="cyx"),
                pyramid_from_arrays([coded((192, 128))], axes="cyx")]
    for weighting, share in (("area", 1 / 7), ("equal", 1 / 2)):
        config = pretrain(image_weighting=weighting, levels=(1,))
        samples = SampleSource(pyramids, config=config)
        drawn = [samples.sample(i)["image_index"] for i in range(200)]
        assert drawn.count(0) / 200 == pytest.approx(share, abs=0.1)


def test_crops_are_drawn_where_annotations_are():
    labels = np.zeros(SHAPE, np.uint8)
    labels[200:204, 300:330] = 1
    labels[40, 50] = 2
    samples = source(labels, finetune(unlabelled=0))
    assert samples.class_table is not None
    assert samples.class_table.values == (1, 2)
    for index in range(30):
        assert (samples.sample(index)["target"] >= 0).any()
    offsets = {tuple(np.argwhere(samples.sample(i)["target"] >= 0)[0]) for i in range(30)}
    assert len(offsets) > 10


def test_annotations_count_even_where_no_tissue_is():
    image = np.zeros((1, *SHAPE), np.float32)
    image[:, 100:200, 100:200] = 100 + np.random.default_rng(0).random((100, 100))
    labels = np.zeros(SHAPE, np.uint8)
    labels[10:20, 10:20] = 1
    samples = source(labels, finetune(unlabelled=0, tissue="auto"), image)
    assert (samples.sample(0)["target"] == 0).any()


def test_crops_are_drawn_in_tissue():
    image = np.random.default_rng(0).normal(10, 1, (1, *SHAPE)).astype(np.float32)
    image[:, 100:200, 100:200] += 100
    samples = source(config=pretrain(tissue="auto", levels=(1,)), image=image)
    boxes = np.stack([samples.sample(i)["bbox"][0].mean(axis=0) for i in range(40)])
    assert boxes.min() > 80
    assert boxes.max() < 220


def test_at_least_the_share_holds_foreground():
    labels = np.zeros(SHAPE, np.uint8)
    labels[250:253, 350:353] = 1
    plain = source(labels)
    with_share = source(labels, finetune(foreground_fraction=0.5))
    assert with_share.class_table is not None
    assert with_share.class_table.background == 0
    held = [bool((with_share.sample(i)["target"] == 1).any()) for i in range(40)]
    assert sum(held) >= 20
    assert sum(bool((plain.sample(i)["target"] == 1).any()) for i in range(40)) < 10


def test_half_of_the_crops_hold_foreground_where_little_is_labelled():
    labels = np.full(SHAPE, 255, np.uint8)
    labels[:100, :100] = 0
    labels[250:253, 350:353] = 1
    few, all_labelled = finetune(unlabelled=255, background=0), finetune(background=0)
    assert source(labels, few).foreground_fraction == 0.5
    assert source(labels, finetune(unlabelled=255, background=0, foreground_fraction=0.0)
                  ).foreground_fraction == 0
    assert source(labels % 255, all_labelled).foreground_fraction == 0


def test_foreground_is_drawn_from_the_images_that_have_it():
    labels = np.zeros((2, *SHAPE), np.uint8)
    labels[1, 20:24, 30:34] = 1
    pyramids = [pyramid_from_arrays([coded()], axes="cyx") for _ in labels]
    given = [open_pyramid(part) for part in labels]
    config = finetune(foreground_fraction=0.5)
    training = SampleSource(pyramids, given, config=config)
    held = [bool((training.sample(i)["target"] == 1).any()) for i in range(20)]
    assert sum(held) >= 10
    table = training.class_table
    judging = SampleSource(pyramids, given, config=config, split="val", class_table=table)
    assert sum(bool((judging.sample(i)["target"] == 1).any()) for i in range(20)) < 5


def test_gigapixel_stores_with_a_few_strokes(tmp_path):
    side, levels = 200_000, (1, 8, 64, 512)
    table = ClassTable(make_classes([1]), unlabelled=0)
    stores = []
    for name, classes in (("image", None), ("labels", table)):
        arrays = create_pyramid(tmp_path / name, shape=(side, side), axes="yx", levels=levels,
                                dtype=np.uint8, classes=classes)
        arrays[0][150_000:150_020, 3_000:3_100] = 1
        stores.append(open_pyramid(str(tmp_path / name)))
    tracemalloc.start()
    samples = SampleSource(stores[:1], stores[1:], config=finetune(levels=(1, 8, 64, 512)))
    sample = samples.sample(0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (sample["target"] == 0).any()
    assert peak < 150 * 2**20


def test_strokes_painted_between_two_runs_are_seen(tmp_path):
    create_pyramid(tmp_path / "i.ome.zarr", shape=(600, 600), axes="yx", levels=1, dtype=np.uint8)
    image = str(tmp_path / "i.ome.zarr")
    stroke = np.ones((10, 20), bool)
    areas = []
    with open_annotations(image) as store:
        for corner in ((100, 100), (300, 300)):
            store.write(1, corner, stroke, 2)
            store.flush()
            labels = open_pyramid(str(store.path))
            samples = SampleSource([open_pyramid(image)], [labels], config=finetune())
            assert samples.class_table == store.classes
            seen = [samples.sample(i) for i in range(10)]
            assert all((sample["target"] == 1).any() for sample in seen)
            areas.append(samples.images[0].places.area)
            reader = samples.images[0].labels
            assert reader is not None
            # what an earlier run kept in memory is found by the fingerprint
            assert reader.pyramid.fingerprint != labels.fingerprint
    assert areas[1] > areas[0]


def test_fractions_are_those_of_the_whole_coarse_view():
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, 200:] = 1
    samples = source(labels, finetune(flip=False, rotate=False))
    sample = samples.sample(4)
    assert sample["fractions"].shape == (2, 2, 4, 4)
    coarse = sample["bbox"][1]
    share = np.clip((coarse[1, 1] - 199.5) / 128, 0, 1)
    valid = sample["fraction_valid"][1] == 1
    assert sample["fractions"][1, 1][valid].mean() == pytest.approx(share, abs=0.05)
    judged = sample["fraction_valid"] > 0
    np.testing.assert_allclose(sample["fractions"].sum(1)[judged], 1, rtol=1e-5)
    assert "fractions" not in source(labels, finetune(level_supervision=0.0)).sample(0)


def test_sparse_labels_go_without_fractions_unless_asked_for():
    labels = np.zeros(SHAPE, np.uint8)
    labels[:10, :10] = 1
    assert not source(labels, finetune(unlabelled=0)).fractions
    assert source(labels, finetune(unlabelled=0, level_supervision=1.0)).fractions
    labels[:] = 1
    assert source(labels, finetune(unlabelled=0)).fractions


def test_training_and_validation_blocks_are_apart():
    config = pretrain(val_fraction=0.2, levels=(1, 2), flip=False, rotate=False)
    train, val = source(config=config, split="train"), source(config=config, split="val")
    seen = np.concatenate([train.sample(i)["bbox"] for i in range(100)])
    kept = np.concatenate([val.sample(i)["bbox"][:1] for i in range(50)])
    assert seen[:, 1, 1].max() <= kept[:, 0, 1].min() + 1e-9


def test_small_images_go_to_training_whole():
    config = pretrain(val_fraction=0.2, levels=(1, 16))
    assert source(config=config, split="train").images[0].block[1, 1] == 399.5
    with pytest.raises(InputError, match="Pass validation images"):
        source(config=config, split="val")


def test_stores_and_volumes(tmp_path):
    arrays = create_pyramid(tmp_path / "v.zarr", shape=(12, 80, 80), axes="zyx", levels=(1, 4),
                            dtype=np.uint16)
    volume = np.random.default_rng(0).integers(0, 500, (12, 80, 80)).astype(np.uint16)
    arrays[0][:] = volume
    arrays[1][:] = volume[:, ::4, ::4]
    config = pretrain(crop_size=(8, 16, 16), patch_size=(4, 8, 8), normalization="percentile")
    samples = SampleSource([open_pyramid(str(tmp_path / "v.zarr"))], config=config)
    sample = samples.sample(0)
    assert sample["img"].shape == (2, 1, 8, 16, 16)
    assert sample["bbox"].shape == (2, 2, 3)
    np.testing.assert_allclose(sample["bbox"][:, 1] - sample["bbox"][:, 0],
                               [[8, 16, 16], [8, 64, 64]])


def test_images_of_another_pixel_size_are_read_at_the_size_of_the_first():
    one = pyramid_from_arrays([coded()], axes="cyx", pixel_size=(0.5, 0.5))
    two = pyramid_from_arrays([coded((600, 800))], axes="cyx", pixel_size=(0.25, 0.25))
    config = pretrain(flip=False, rotate=False, image_weighting="equal")
    samples = SampleSource([one, two], config=config)
    assert samples.images[1].match.levels == (2, 8)
    drawn = [samples.sample(i) for i in range(20)]
    assert {sample["image_index"] for sample in drawn} == {0, 1}
    for sample in drawn:
        np.testing.assert_allclose(sample["bbox"][:, 1] - sample["bbox"][:, 0],
                                   [[32, 32], [128, 128]])
        scale = 1 + sample["image_index"]
        expected = pixel_centres(sample["bbox"][0] * scale, 32)
        np.testing.assert_allclose(sample["img"][0], expected, atol=1e-3)


def test_pixels_that_are_no_numbers_are_not_valid():
    image = coded()
    image[0, 100:] = np.nan
    config = pretrain(levels=(1,))
    samples = source(config=config, image=image)
    found = [samples.sample(i) for i in range(20)]
    assert all(np.isfinite(sample["img"]).all() for sample in found)
    assert any(not sample["valid"].all() for sample in found)
    judged = source(np.ones(SHAPE, np.uint8), finetune(levels=(1,)), image)
    for index in range(20):
        sample = judged.sample(index)
        np.testing.assert_array_equal(sample["target"] >= 0, sample["valid"][0])


def test_stain_jitter_is_for_rgb_only():
    with pytest.raises(InputError, match="stain_jitter"):
        source(config=pretrain(stain_jitter=0.1))
    rgb = open_pyramid(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
    plain = SampleSource([rgb], config=pretrain(levels=(1,))).sample(0)
    jittered = SampleSource([rgb], config=pretrain(levels=(1,), stain_jitter=0.5)).sample(0)
    np.testing.assert_array_equal(plain["bbox"], jittered["bbox"])
    assert not np.array_equal(plain["img"], jittered["img"])


def test_advice_is_given_for_levels_that_leave_the_image():
    assert source(config=pretrain(levels=(1, 64))).advice
    assert not source().advice


def test_labels_of_one_class_are_warned_of():
    image = np.random.default_rng(0).random((2, *SHAPE)).astype(np.float32)
    one, = source(np.zeros(SHAPE, np.uint8), finetune(levels=(1,)), image).advice
    assert "one class only, 'background'" in one
    two = np.zeros(SHAPE, np.uint8)
    two[:50] = 1
    assert source(two, finetune(levels=(1,)), image).advice == []


@pytest.mark.parametrize(
    ("images", "labels", "words", "kind"),
    [
        ([], None, "no images", InputError),
        ([(2, 64, 64), (3, 64, 64)], None, "channels", ChannelError),
        ([(2, 64, 64), (2, 20, 64, 64)], None, "axes", InputError),
        ([(2, 64, 64)], [(64, 64)] * 2, "1 images are given with 2", InputError),
        ([(2, 64, 64)], [(32, 32)], "cover the same pixels", InputError),
    ],
)
def test_what_does_not_fit_is_refused(images, labels, words, kind):
    axes = {3: "cyx", 4: "czyx"}
    pyramids = [pyramid_from_arrays([np.zeros(s, np.uint8)], axes=axes[len(s)]) for s in images]
    given = None if labels is None else [open_pyramid(np.ones(s, np.uint8)) for s in labels]
    with pytest.raises(kind, match=words):
        SampleSource(pyramids, given, config=finetune())


def test_boxes_are_checked():
    good = np.array([[[0.0, 0], [4, 4]]])
    check_boxes(good)
    with pytest.raises(InputError, match="maximum"):
        check_boxes(good[:, ::-1])
    with pytest.raises(InputError, match="not finite"):
        check_boxes(good + np.inf)


def test_samples_need_no_torch():
    code = "import sys, napari_muvit.data.samples; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
