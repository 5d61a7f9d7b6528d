"""Regions, models and label layers of the Predict widget."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from napari.layers import Image

from napari_muvit import api
from napari_muvit.errors import InputError
from napari_muvit.plugin import image_choices, label_layers, layers, predict
from napari_muvit.plugin.predict_queue import many_rows

TABLE = api.ClassTable(
    (api.LabelClass(1, "rest", "#808080"), api.LabelClass(5, "nuclei", "#ff0000")), background=1
)


@settings(deadline=None, max_examples=40)
@given(
    low=st.tuples(st.floats(0, 400), st.floats(0, 400)),
    side=st.tuples(st.floats(1, 900), st.floats(1, 900)),
    factor=st.sampled_from([1.0, 2.0, 3.0]),
)
def test_blocks_cover_the_region_once(
    low: tuple[float, float], side: tuple[float, float], factor: float
) -> None:
    box = np.array([low, np.add(low, side)])
    shape = tuple(int(np.ceil(n / factor)) for n in (500, 700))
    region = predict.plan_region(box, shape, factor)
    chunks = [[64] * (n // 64) + [n % 64] * (n % 64 > 0) for n in shape]
    written = np.zeros(region.shape, int)
    for block in region.blocks(chunks):
        written[region.local(block)] += 1
    assert np.all(written == 1)
    first = region.offset() - factor / 2
    assert np.all(first <= np.maximum(box[0], -0.5) + 1e-6)


def test_region_starts_in_the_middle() -> None:
    region = predict.plan_region(np.array([[-0.5, -0.5], [299.5, 299.5]]), (300, 300), 1)
    assert region.blocks([[100] * 3] * 2)[0] == (slice(100, 200), slice(100, 200))


def test_every_chunk_is_computed_once_and_only_inside_the_region() -> None:
    computed: list[tuple[int, ...]] = []
    asked: dict[str, Any] = {}

    def predict_lazily(pyramid: Any, model: str, **options: Any) -> Any:
        def compute(block_info: Any) -> Any:
            place = block_info[None]["chunk-location"]
            computed.append(place)
            return np.full((100, 100), 1 + sum(place), np.uint8)

        asked.update(options, model=model)
        return da.map_blocks(compute, chunks=((100,) * 4,) * 2, dtype=np.uint8,
                             meta=np.empty((0, 0), np.uint8))

    model = predict.LoadedModel("run", (1,), (64, 64), TABLE, 1)
    region = predict.plan_region(np.array([[49.5, 149.5], [249.5, 249.5]]), (400, 400), 1)
    image = SimpleNamespace(pyramid=None)
    done = list(predict.predict_region(
        SimpleNamespace(predict=predict_lazily), image, model, region, "cpu"))
    assert sorted(computed) == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]
    assert asked["model"] == "run"
    assert np.array_equal(asked["roi"], [[49.5, 149.5], [249.5, 249.5]])
    assert [part.done for part in done] == list(range(1, 7))
    assert sum(part.labels.size for part in done) == 200 * 100


def test_region_outside_is_refused() -> None:
    with pytest.raises(InputError, match="no part"):
        predict.plan_region(np.array([[900.0, 900.0], [950.0, 950.0]]), (300, 300), 1)


def test_model_that_does_not_segment_is_refused() -> None:
    backend = SimpleNamespace(load_model=lambda folder: SimpleNamespace(meta=None))
    with pytest.raises(InputError, match="Fine-tune"):
        predict.load(backend, "run")
    with pytest.raises(InputError, match="Choose"):
        predict.load(backend, " ")


def test_remaining_time_is_said() -> None:
    texts = [predict.remaining_text(s) for s in (None, 0.2, 65, 600, 7200, float("nan"))]
    assert texts == ["", "about 1 s left", "about 65 s left", "about 10 min left",
                     "about 2.0 h left", ""]


def test_classes_have_their_colours_and_background_none() -> None:
    colors = label_layers.class_colors(TABLE)
    assert colors[5] == (1.0, 0.0, 0.0, 1.0)
    assert colors[1] == colors[0] == colors[None] == (0, 0, 0, 0)
    assert label_layers.class_features(TABLE) == {"index": [1, 5], "class": ["rest", "nuclei"]}


def test_areas() -> None:
    rows = label_layers.area_rows([{"name": "rest", "px": 1600.0, "um2": 400.2},
                                   {"name": "nuclei", "px": 48}])
    assert rows == [("rest", "1,600", "400"), ("nuclei", "48", "unknown")]


@pytest.mark.parametrize("axes", ["yx", "cyx", "yxc"])
@pytest.mark.parametrize("key", [
    (), (slice(2, 9), slice(1, 5)), (slice(None, None, 2), slice(3, 4)), (4, slice(2, 6)), (-1, -2),
])
def test_level_array_reads_like_numpy(axes: str, key: tuple[object, ...]) -> None:
    channels = 1 if axes == "yx" else 3
    image = np.random.default_rng(0).integers(0, 255, (channels, 16, 12), dtype=np.uint8)
    pyramid = api.pyramid_from_arrays([image], axes="cyx")
    expected = {"yx": image[0], "cyx": image, "yxc": np.moveaxis(image, 0, -1)}[axes]
    array = label_layers.LevelArray(pyramid, 0, axes)
    whole_key = (slice(None), *key) if axes == "cyx" and key else key
    assert array.shape == expected.shape
    assert np.array_equal(array[whole_key], expected[whole_key])


@pytest.mark.parametrize(("name", "stem"), [
    ("s1_2024.01.05_a.svs", "s1_2024.01.05_a"), ("slide.ome.tif", "slide"),
    ("slide.ome.zarr", "slide"), ("slide.png", "slide"),
])
def test_slides_whose_names_have_dots_get_outputs_of_their_own(name: str, stem: str) -> None:
    image = SimpleNamespace(path=f"/data/{name}", name="layer", plane={}, pyramid=None)
    folder = Path("run", predict.FOLDER)
    assert predict.default_output(image, "run") == folder / f"{stem}.ome.zarr"
    box = np.array([[10.0, 20.0], [30.0, 40.0]])
    assert predict.default_output(image, "run", box).name == f"{stem}_10,20_to_30,40.ome.zarr"
    assert many_rows([{"image": image.path, "name": "dark"}])[0]["name"] == f"{stem}: dark"


def test_time_points_get_outputs_of_their_own(tmp_path: Path) -> None:
    for count, names in ((3, ("s_t0", "s_t2")), (1, ("s", "s"))):
        path = tmp_path / str(count) / "s.ome.zarr"
        api.create_pyramid(path, shape=(count, 32, 48), axes="tyx", levels=(1,), dtype=np.uint8)
        layer = Image(np.zeros((count, 32, 48), np.uint8), axis_labels=("t", "y", "x"),
                      metadata={image_choices.SOURCE_KEY: str(path)})
        found = []
        for t in (0, count - 1):
            choice = image_choices.ImageChoice("s", (layer,))
            image = layers.resolve_image(choice, api, (t, 0, 0))
            assert image.path == str(path)
            found.append(predict.default_output(image, "run").name)
        assert found == [f"{name}.ome.zarr" for name in names]
    moment = SimpleNamespace(path=None, name="in memory", plane={"t": 4}, pyramid=None)
    assert predict.default_output(moment, "run").name == "in_memory_t4.ome.zarr"
