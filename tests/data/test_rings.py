"""Sets made by code: the same for the same seed, and only the place of a cell tells its class."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.measure import label as components
from skimage.measure import regionprops

from napari_muvit.data import landmarks, rings
from napari_muvit.data.cohort import read_cohort
from napari_muvit.data.drawn_sets import split_seed
from napari_muvit.data.labels import read_class_table
from napari_muvit.data.pyramid import open_pyramid
from napari_muvit.data.rings import perlin, rings_image

MAKERS = [rings_image, landmarks.landmarks_image]
SETS = [
    (rings.write_rings, rings_image, rings.CLASSES, "rings.csv", 64),
    (landmarks.write_landmarks, landmarks.landmarks_image, landmarks.CLASSES, "landmarks.csv", 32),
]


@pytest.mark.parametrize("make", MAKERS)
def test_the_seed_decides(make):
    image, labels = make(3, 256)
    again, same = make(3, 256)
    other, _ = make(4, 256)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(labels, same)
    assert not np.array_equal(image, other)
    assert image.shape == labels.shape == (256, 256)
    assert image.dtype == labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 1, 2}


def test_a_smaller_image_is_the_same_task():
    shares = [np.bincount(rings_image(1, size)[1].ravel(), minlength=3) / size**2
              for size in (256, 1024)]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.02)


@pytest.mark.parametrize("make", MAKERS)
def test_cells_of_both_classes_look_alike(make):
    sizes, brightness = {1: [], 2: []}, {1: [], 2: []}
    for seed in range(4):
        image, labels = make(seed, 512)
        for kind in (1, 2):
            for cell in regionprops(components(labels == kind), intensity_image=image):
                sizes[kind].append(cell.area)
                brightness[kind].append(cell.intensity_mean)
    assert min(len(v) for v in sizes.values()) > 300
    for values, tolerance in ((sizes, 0.05), (brightness, 0.01)):
        one, two = np.mean(values[1]), np.mean(values[2])
        assert abs(one / two - 1) < tolerance


def test_both_classes_are_common():
    labels = np.stack([rings_image(seed, 256)[1] for seed in range(8)])
    inner = (labels == rings.INNER).sum() / (labels > 0).sum()
    assert 0.35 < inner < 0.55


def test_inner_cells_are_inside_and_outer_cells_outside():
    options = rings.RingOptions()
    _, labels = rings_image(0, 512)
    rng = np.random.default_rng([0, 0x52696E67])
    distance, radius = rings._nearest_centre(rng, 512, options)
    depth = distance - radius
    bent = 2 * sum(amplitude for _, amplitude in options.waves)  # noise moves the ring so far
    assert (depth[labels == rings.INNER] < bent).all()
    assert (depth[labels == rings.OUTER] > -bent).all()
    reach = options.band + bent + options.cell[1] * 1.3
    assert (np.abs(depth[labels > 0]) < reach).all()
    assert np.mean(depth[labels == rings.INNER] < 0) > 0.9


def test_noise_is_smooth_and_centred():
    noise = perlin(np.random.default_rng(0), 256, 32)
    assert noise.shape == (256, 256)
    assert abs(noise.mean()) < 0.1
    assert np.abs(noise).max() < 1
    assert np.abs(np.diff(noise, axis=0)).max() < 0.1


@pytest.mark.parametrize(("write", "make", "classes", "name", "side"), SETS)
def test_a_set_is_written_once_and_can_be_continued(tmp_path, write, make, classes, name, side):
    counts = {"train": 2, "val": 1}
    seen = []
    path = write(tmp_path, counts, seed=5, size=256, progress=lambda *a: seen.append(a))
    assert path.name == name
    assert seen == [(1, 3), (2, 3), (3, 3)]
    rows = read_cohort(path)
    assert [row.split for row in rows] == ["train", "train", "val"]
    image, labels = open_pyramid(rows[0].image), open_pyramid(rows[0].labels)
    expected = make(split_seed(5, "train", 0), 256)
    np.testing.assert_array_equal(image.read(0, (0, 0), (256, 256))[0], expected[0])
    np.testing.assert_array_equal(labels.read(0, (0, 0), (256, 256))[0], expected[1])
    assert image.shapes == ((256, 256), (side, side))
    assert read_class_table(labels) == classes
    before = (tmp_path / "images").stat().st_mtime_ns
    assert write(tmp_path, counts, seed=5, size=256) == path
    assert (tmp_path / "images").stat().st_mtime_ns == before


def test_images_of_a_set_differ_in_their_seeds():
    seeds = {split_seed(s, split, i) for s in range(2) for split in rings.COUNTS for i in range(9)}
    assert len(seeds) == 2 * 3 * 9
    assert rings.COUNTS == {"train": 1638, "val": 220, "test": 190}
    assert landmarks.COUNTS == {"train": 90, "val": 10, "test": 20}


def test_landmarks_lie_apart_and_decide():
    rng = np.random.default_rng(0)
    points = landmarks.scatter_points(rng, 8, 0.22, 0.03)
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.eye(8)
    assert gaps.min() >= 0.22
    crowded = landmarks.scatter_points(rng, 60, 0.22, 0.03)
    assert crowded.shape == (60, 2)


def test_the_nearest_landmark_decides():
    """Found again in the picture: discs are filled in the middle, frames are dark there."""
    quiet = landmarks.LandmarkOptions(noise=0.0, count=2, cell_brightness=0.99)
    image, labels = landmarks.landmarks_image(1, 512, quiet)
    shapes = [r for r in regionprops(components((image > 140) & (image < 165))) if r.area > 200]
    assert len(shapes) == 2
    disc, frame = sorted(shapes, key=lambda r: r.area_filled - r.area)
    places = np.argwhere(labels > 0)
    gaps = [np.linalg.norm(places - np.asarray(r.centroid), axis=1) for r in (disc, frame)]
    expected = np.where(gaps[0] < gaps[1], landmarks.DISC, landmarks.FRAME)
    assert (labels[labels > 0] == expected).mean() > 0.97
