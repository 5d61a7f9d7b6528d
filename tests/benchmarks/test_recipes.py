"""Recipes of Mouse and KPIS, from files as they are downloaded to the table, on stand-ins."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import recipe
import standins
import tifffile
import yaml
from experiments import prepare as preparing
from experiments.downloads import find_kpis, find_mouse
from experiments.label_files import colour_values, find_classes

from napari_muvit import api
from napari_muvit.config import FinetuneConfig, PredictConfig, PretrainConfig, parse_config
from napari_muvit.data.labels import ClassTable, LabelClass
from napari_muvit.errors import InputError


@pytest.fixture(scope="module")
def mouse(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mouse")
    standins.main(["mouse", str(folder)])
    assert recipe.main(["prepare", "mouse", str(folder / "raw"), str(folder / "data")]) == 0
    return folder


@pytest.fixture(scope="module")
def kpis(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kpis")
    standins.main(["kpis", str(folder)])
    assert recipe.main(["prepare", "kpis", str(folder / "raw"), str(folder / "data")]) == 0
    return folder


def values_of(labels):
    return set(np.unique(np.asarray(labels.read(0, [0, 0], labels.spatial_shape))).tolist())


def test_sections_keep_axes_values_and_sizes(mouse):
    rows = api.read_cohort(mouse / "data" / "images.csv")
    assert [(row.group, row.split) for row in rows] == [
        (specimen, "test" if specimen == "BM15" else "train")
        for specimen in ("BM03", "BM07", "BM15") for _ in range(2)]
    found = set()
    for row in rows:
        image, labels = api.open_pyramid(row.image), api.open_pyramid(row.labels)
        raw = tifffile.imread(mouse / "raw" / "slices" / f"{Path(row.image).name[:8]}.tif")
        assert (image.axes, image.dtype, image.spatial_shape) == ("cyx", np.uint16, (360, 480))
        assert [factor[0] for factor in image.factors] == pytest.approx([1, 8, 32])
        np.testing.assert_array_equal(image.read(0, [0, 0], (360, 480))[0], raw)
        assert image.pixel_size[0] == pytest.approx((0.65, 0.65))
        assert labels.pixel_size[0] == pytest.approx((1.3, 1.3))
        assert labels.spatial_shape == (180, 240)
        found |= values_of(labels)
        assert values_of(labels) <= set(range(12))
    assert found == set(range(12))


def test_every_section_knows_every_region(mouse):
    """Also those that lack one: a model and its table must not depend on which were looked at."""
    table = api.read_classes(mouse / "data" / "classes.csv")
    assert table.names == ("background", *(f"region {value}" for value in range(1, 12)))
    assert table.background == 0
    for row in api.read_cohort(mouse / "data" / "images.csv"):
        assert api.read_class_table(api.open_pyramid(row.labels)) == table


def test_slides_keep_colours_groups_and_sizes(kpis):
    rows = {Path(row.image).name.split(".")[0]: row
            for row in api.read_cohort(kpis / "data" / "images.csv")}
    assert {name: (row.split, row.group) for name, row in rows.items()} == {
        "12-116": ("train", "56Nx"), "11-356": ("train", "DN"), "08-368_01": ("train", "NEP25"),
        "normal_F1": ("train", "normal"), "12-173": ("val", "56Nx"),
        "normal_M1": ("val", "normal"), "12-299": ("test", "56Nx"), "18-578": ("test", "NEP25"),
    }
    for name, row in rows.items():
        image, labels = api.open_pyramid(row.image), api.open_pyramid(row.labels)
        size = 0.5 if row.group == "NEP25" else 0.25
        raw = next((kpis / "raw").rglob(f"{name}_wsi.tiff"))
        with tifffile.TiffFile(raw) as file:
            assert file.is_bigtiff
            assert len(file.series[0].levels) == 3
        assert (image.axes, image.shape, image.dtype) == ("cyx", (3, 448, 512), np.uint8)
        np.testing.assert_array_equal(
            image.read(0, [0, 0], (448, 512)), np.moveaxis(tifffile.imread(raw), -1, 0))
        assert image.pixel_size[0] == labels.pixel_size[0] == pytest.approx((size, size))
        assert values_of(labels) == {0, 1}
        assert api.read_class_table(labels).names == ("background", "glomerulus")


def test_masks_of_255_mean_the_same(kpis):
    masks = {path.stem: tifffile.imread(path).max() for path in kpis.rglob("*_mask.tiff")}
    assert set(masks.values()) == {1, 255}
    for row in api.read_cohort(kpis / "data" / "images.csv"):
        name = Path(row.image).name.split(".")[0]
        labels = api.open_pyramid(row.labels)
        raw = tifffile.imread(next((kpis / "raw").rglob(f"{name}_mask.tiff")))
        np.testing.assert_array_equal(labels.read(0, [0, 0], (448, 512))[0], raw > 0)


def test_preparing_goes_on_where_it_was(tmp_path, monkeypatch):
    standins.make_mouse(tmp_path / "raw")
    convert, seen = api.convert, []

    def interrupted(source, output, **options):
        seen.append(output.name)
        for event in convert(source, output, **options):
            if len(seen) == 4 and event.done == event.total:
                raise KeyboardInterrupt
            yield event

    arguments = ["prepare", "mouse", str(tmp_path / "raw"), str(tmp_path / "data")]
    monkeypatch.setattr(preparing.api, "convert", interrupted)
    assert recipe.main(arguments) == 130
    assert not (tmp_path / "data" / "images.csv").exists()
    assert not (tmp_path / "data" / "BM03" / "BM03_002_labels.ome.zarr").exists()
    assert recipe.main(arguments) == 0
    assert seen[4] == seen[3] == ".BM03_002_labels.ome.zarr.part"
    assert len(seen) == 13  # twelve stores, one of them begun twice
    assert recipe.main(arguments) == 0
    assert len(seen) == 13
    assert len(api.read_cohort(tmp_path / "data" / "images.csv")) == 6
    assert not list((tmp_path / "data").rglob("*.part"))


def test_coloured_regions_become_numbers(tmp_path, mouse):
    standins.make_mouse(tmp_path / "raw", is_coloured=True)
    cohort = preparing.prepare("mouse", tmp_path / "raw", tmp_path / "data")
    table = api.read_classes(tmp_path / "data" / "classes.csv")
    assert len(table) == 12
    assert table.classes[0].color == "#000000"
    for row, plain in zip(api.read_cohort(cohort),
                          api.read_cohort(mouse / "data" / "images.csv"), strict=True):
        labels, numbers = api.open_pyramid(row.labels), api.open_pyramid(plain.labels)
        # The file does not say how large its pixels are: it covers the section.
        assert labels.pixel_size[0] == pytest.approx((1.3, 1.3))
        pairs = np.stack([one.read(0, [0, 0], (180, 240)).ravel() for one in (labels, numbers)])
        assert len(np.unique(pairs, axis=1).T) == len(values_of(numbers))  # one to one


def test_regions_can_be_named(tmp_path):
    standins.make_mouse(tmp_path / "raw")
    names = tmp_path / "names.csv"
    names.write_text("value,name,color,meaning\n0,outside,,background\n"
                     + "".join(f"{value},part {value},,class\n" for value in range(1, 12)))
    cohort = preparing.prepare("mouse", tmp_path / "raw", tmp_path / "data", classes=names)
    table = api.read_class_table(api.open_pyramid(api.read_cohort(cohort)[0].labels))
    assert table.names[:2] == ("outside", "part 1")
    names.write_text("value,name\n0,other\n")
    with pytest.raises(InputError, match="other classes"):
        preparing.prepare("mouse", tmp_path / "raw", tmp_path / "data", classes=names)


def test_sections_without_a_pixel_size_can_be_given_one(tmp_path):
    image, regions = standins.mouse_section(0)
    both = np.stack([np.zeros_like(image), image])
    for folder, pixels in (("slices", both), ("regions", regions[::2, ::2])):
        (tmp_path / "raw" / folder).mkdir(parents=True)
        tifffile.imwrite(tmp_path / "raw" / folder / "BM15_1.tif", pixels,
                         photometric="minisblack", metadata={"axes": "CYX"[-pixels.ndim:]})
    with pytest.raises(InputError, match="coarser by 2 x 2"):
        preparing.prepare("mouse", tmp_path / "raw", tmp_path / "data")
    cohort = preparing.prepare("mouse", tmp_path / "raw", tmp_path / "data", channels=[1],
                               pixel_size=0.65)
    [row] = api.read_cohort(cohort)
    section, labels = api.open_pyramid(row.image), api.open_pyramid(row.labels)
    np.testing.assert_array_equal(section.read(0, [0, 0], image.shape), image[None])
    assert section.pixel_size[0] == pytest.approx((0.65, 0.65))
    assert labels.pixel_size[0] == pytest.approx((1.3, 1.3))


def test_colours_have_the_values_of_their_table():
    table = ClassTable((LabelClass(0, "outside", "#ffffff"), LabelClass(7, "a", "#0000ff"),
                        LabelClass(3, "b", "#00ff00")), background=0)
    colours = np.array([[255, 0, 0, 9], [255, 0, 255, 9], [255, 255, 0, 9]], np.uint8)
    values = colour_values(table, colours[:, None])
    assert values.tolist() == [[0, 7, 3, 0]]  # a colour of no class is background


def test_regions_of_another_size_in_micrometres_are_refused(tmp_path):
    standins.make_mouse(tmp_path / "raw")
    path = tmp_path / "raw" / "regions" / "BM03_001.tif"
    tifffile.imwrite(path, tifffile.imread(path), metadata=None,
                     resolution=(1e4 / 2.6, 1e4 / 2.6), resolutionunit="CENTIMETER")
    with pytest.raises(InputError, match="labels cover the same pixels"):
        preparing.prepare("mouse", tmp_path / "raw", tmp_path / "data")


def test_smooth_colours_are_no_regions(tmp_path):
    path = tmp_path / "smooth.tif"
    ramp = np.stack([np.arange(128, dtype=np.uint8)] * 3, axis=-1)
    tifffile.imwrite(path, np.repeat(ramp[None], 16, axis=0), photometric="rgb")
    with pytest.raises(InputError, match="more than 64 colours"):
        find_classes([path])


@pytest.mark.parametrize(("section", "regions"), [
    ("BM03_1.tif", "BM03_1_regions.png"), ("bm03/DAPI/s1.tif", "bm03/masks/s1.png"),
    ("a/BM03_1_dapi.ome.tif", "Segmentations/BM03_1.tif"),
])
def test_sections_find_their_regions(tmp_path, section, regions):
    for name in (section, regions):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    [found] = find_mouse(tmp_path)
    assert (found.image, found.labels) == (tmp_path / section, tmp_path / regions)
    assert (found.group, found.split) == ("BM03", "train")
    assert found.name.upper().startswith("BM03")


def test_slides_and_masks_may_lie_in_folders_of_their_own(tmp_path):
    for name in ("valid/DN/img/1_wsi.tiff", "valid/DN/mask/1_mask.tiff",
                 "valid/DN/img/2_wsi.tiff"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    [found] = find_kpis(tmp_path)
    assert (found.name, found.group, found.split) == ("1", "DN", "val")


@pytest.mark.parametrize(("kind", "names", "words"), [
    ("mouse", ["section.tif"], "names no specimen"), ("mouse", ["BM01_1.tif"], "holds no sec"),
    ("kpis", ["12_wsi.tiff"], "holds no NAME_wsi.tiff"),
    ("kpis", ["DN/12_wsi.tiff", "DN/12_mask.tiff"], "no folder of training"),
])
def test_other_folders_are_refused_in_words(tmp_path, capsys, kind, names, words):
    for name in names:
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).touch()
    assert recipe.main(["prepare", kind, str(tmp_path / "raw"), str(tmp_path / "data")]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["mouse", "kpis"])
def test_small_recipes_differ_in_sizes_alone(kind, tmp_path):
    small = yaml.safe_load(yaml.safe_dump(standins.small_recipe(kind, tmp_path)))
    path = Path(standins.CONFIGS) / f"{kind}.yaml"
    whole = yaml.safe_load(path.read_text(encoding="utf-8"))
    for section in ("pretrain", "finetune"):
        kept = {"levels", "decoder", "norm", "ce_weight", "dice_weight", "class_weights",
                "foreground_fraction"} & whole[section].keys()
        assert {key: small[section][key] for key in kept} == {
            key: whole[section][key] for key in kept}
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(yaml.safe_dump(small))
    for options in (PretrainConfig, FinetuneConfig, PredictConfig):
        assert parse_config(options, recipe_file)


@pytest.mark.parametrize(("before", "after", "wanted"), [
    ({}, "completed", ["pretrain", "finetune"]),
    ({"pretrain": "early", "finetune": "interrupted"}, "completed", ["resume"]),
    ({"pretrain": "stopped"}, "stopped", ["resume"]),  # and no fine-tuning of half a model
])
def test_training_goes_on_where_it_was(tmp_path, monkeypatch, before, after, wanted):
    path, seen = tmp_path / "recipe.yaml", []
    path.write_text(yaml.safe_dump(standins.small_recipe("mouse", tmp_path)))
    outputs = {str(tmp_path / "pretrained"): "pretrain", str(tmp_path / "finetuned"): "finetune"}
    states = dict(before)

    def train(arguments):
        seen.append(arguments[0])
        verb = outputs[arguments[1]] if arguments[0] == "resume" else arguments[0]
        states[verb] = after
        return 0

    monkeypatch.setattr(recipe, "train_command", train)
    monkeypatch.setattr(recipe, "_state", lambda output: states.get(outputs[output]))
    assert recipe.train(path) == 0
    assert seen == wanted


@pytest.mark.parametrize("kind", ["mouse", "kpis"])
def test_pages_show_commands_that_exist(kind):
    page = standins.CONFIGS.parent / "docs" / "recipes" / f"{kind}.md"
    lines = [line.split() for line in page.read_text(encoding="utf-8").splitlines()
             if line.startswith("python benchmarks/")]
    commands = [words[2] for words in lines if words[1] == "benchmarks/recipe.py"]
    assert commands == ["prepare", "train", "table"] * 2  # for the data, and for the stand-in
    for words in lines:
        if words[1] == "benchmarks/recipe.py":
            given = recipe.parse(words[2:])
            assert getattr(given, "set", kind) == kind
        else:
            assert words[:4] == ["python", "benchmarks/standins.py", kind, f"standins/{kind}"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mouse", "kpis"])
def test_three_commands_give_the_table(kind, capsys, request):
    folder = request.getfixturevalue(kind)
    config = str(folder / "recipe.yaml")
    assert recipe.main(["train", config]) == 0
    assert recipe.main(["train", config]) == 0  # both are complete: nothing is done again
    capsys.readouterr()
    assert recipe.main(["table", config, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert (folder / "predictions" / "table.md").read_text(encoding="utf-8").strip() in printed
    [path] = (folder / "predictions").glob("*_seed0/result.json")
    tested = {row.labels for row in api.read_cohort(folder / "data" / "images.csv")
              if row.split == "test"}
    result = json.loads(path.read_text(encoding="utf-8"))
    assert len(result["per_image"]) == len(tested) == 2  # no image that was trained on
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines()]
    scores = dict(zip(lines[0][1:], lines[2][1:], strict=True))
    if kind == "mouse":
        assert lines[2][0] == "MuViT[1,8,32] + UNETR"
        assert lines[0][1:-3] == [f"region {value}" for value in range(1, 12)]
    else:
        assert lines[2][0] == "MuViT[1,8] + UNETR"
        assert scores["glomerulus"] == scores["mDSC"]
        assert float(scores["mDSC"]) > 0.5  # they are darker: a minute's training finds them
    assert all(0 <= float(cell) <= 1 for cell in lines[2][1:-1])
    assert recipe.main(["table", config, "--device", "cpu"]) == 0
    assert "was complete already" in capsys.readouterr().err
