"""Runs from configs, on real (tiny) stores and the real (tiny) models."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
import yaml

from napari_muvit.errors import ConfigError, LockedError, RunError, RunExistsError, SourceError
from napari_muvit.models.checkpoint import load_model
from napari_muvit.training import (
    find_model,
    resume_run,
    segment_task,
    start_finetune,
    start_pretrain,
)
from napari_muvit.training.events import (
    FinishedEvent,
    PreviewEvent,
    StepEvent,
    ValidationEvent,
    WarningEvent,
)
from napari_muvit.training.folder import RunFolder


def weights_of(folder, best=False):
    return load_model(RunFolder(folder).model_folder(best)).state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_pretraining_leaves_a_complete_run_folder(pretrain_options):
    run = start_pretrain(pretrain_options)
    events = list(run)
    assert [e.step for e in events if isinstance(e, StepEvent)] == [1, 2, 3, 4, 5, 6]
    assert events[-1].reason == "completed"
    folder = RunFolder(run.folder)
    facts = folder.facts()
    assert {"torch", "napari_muvit", "device", "kernels", "fingerprints", "seed"} <= facts.keys()
    assert folder.config().steps == 6
    model = load_model(find_model(run.folder))
    assert model.meta.kind == "mae"
    assert model.meta.crop_size == (16, 16)
    assert model.meta.normalization["kind"] == "percentile"
    [first, *_] = [e for e in events if isinstance(e, PreviewEvent)]
    assert first.path.read_bytes().startswith(b"\x89PNG")
    metrics = [e.metrics for e in events if isinstance(e, ValidationEvent)]
    assert metrics[0].keys() == {"loss", "loss_level_1", "loss_level_2"}
    assert metrics[-1]["loss"] < metrics[0]["loss"]


def test_finetuning_from_a_pretrained_run_learns_the_classes(pretrain_options, finetune_options):
    start_pretrain(pretrain_options).wait()
    options = {**finetune_options, "pretrained": pretrain_options["output"], "steps": 60,
               "batch_size": 4, "learning_rate": 3e-3, "validate_every": 30,
               "encoder_rate": 1.0, "flip": False, "val_samples": 16, "checkpoint_every": 60}
    del options["dim"], options["heads"], options["num_layers"], options["patch_size"]
    last = start_finetune(options).wait()
    assert last.metrics["mdsc"] > 0.5
    model = load_model(find_model(last.folder))
    assert model.meta.kind == "segmenter"
    assert model.meta.classes["unlabelled"] == 0
    assert not any(key.startswith("levels") for key in model.state_dict())
    config = RunFolder(last.folder).config()
    assert (config.dim, config.patch_size) == (48, (4, 4))


@pytest.mark.parametrize("cut", [1, 5, 9])
def test_a_left_pretraining_run_resumes_to_the_same_weights(pretrain_options, tmp_path, cut):
    start_pretrain(pretrain_options).wait()
    run = start_pretrain({**pretrain_options, "output": str(tmp_path / "cut")})
    list(itertools.islice(run, cut))
    run.close()
    resume_run(tmp_path / "cut").wait()
    assert same(weights_of(pretrain_options["output"]), weights_of(tmp_path / "cut"))


def test_a_left_finetuning_run_resumes_to_the_same_weights(finetune_options, tmp_path):
    start_finetune(finetune_options).wait()
    run = start_finetune({**finetune_options, "output": str(tmp_path / "cut")})
    for event in run:
        if isinstance(event, StepEvent) and event.step == 3:
            run.stop()
    resume_run(tmp_path / "cut").wait()
    assert same(weights_of(finetune_options["output"]), weights_of(tmp_path / "cut"))
    assert same(weights_of(finetune_options["output"], True), weights_of(tmp_path / "cut", True))


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_finetuning_run_goes_on_without_the_model_it_began_with(
    pretrain_options, finetune_options, tmp_path, is_whole
):
    start_pretrain({**pretrain_options, "steps": 1}).wait()
    options = {**finetune_options, "pretrained": pretrain_options["output"], "levels": (1,)}
    start_finetune(options).wait()
    run = start_finetune({**options, "output": str(tmp_path / "cut")})
    for event in run:
        if isinstance(event, StepEvent) and event.step == 3:
            run.stop()
    if not is_whole:  # its own model was lost: then the first one counts
        (tmp_path / "cut" / "model" / "model.safetensors").write_bytes(b"damaged")
    if is_whole:
        (tmp_path / "pre").rename(tmp_path / "elsewhere")
    resume_run(tmp_path / "cut").wait()
    assert same(weights_of(tmp_path / "fine"), weights_of(tmp_path / "cut"))


def test_a_finetuning_run_that_starts_over_needs_the_model_it_began_with(
    pretrain_options, finetune_options, tmp_path
):
    start_pretrain({**pretrain_options, "steps": 1}).wait()
    start_finetune({**finetune_options, "pretrained": pretrain_options["output"]}).close()
    (tmp_path / "pre").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="which does not exist"):
        resume_run(tmp_path / "fine")


def test_an_output_that_holds_something_is_never_overwritten(pretrain_options, tmp_path):
    start_pretrain(pretrain_options)
    with pytest.raises(RunExistsError, match="already holds a run"):
        start_pretrain(pretrain_options)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("chapter 1", encoding="utf-8")
    with pytest.raises(RunExistsError, match="not empty"):
        start_pretrain({**pretrain_options, "output": str(tmp_path / "other")})
    assert (tmp_path / "other" / "thesis.txt").read_text(encoding="utf-8") == "chapter 1"


def test_bad_sources_are_refused_before_anything_is_written(pretrain_options, tmp_path):
    with pytest.raises(SourceError):
        start_pretrain({**pretrain_options, "images": [str(tmp_path / "none.ome.zarr")]})
    assert not (tmp_path / "pre").exists()


def test_config_in_the_folder_starts_the_same_run_again(pretrain_options, tmp_path):
    start_pretrain(pretrain_options).wait()
    text = (tmp_path / "pre" / "config.yaml").read_text(encoding="utf-8")
    values = {**yaml.safe_load(text), "output": str(tmp_path / "again")}
    assert "# torch:" in text
    start_pretrain(values).wait()
    assert same(weights_of(tmp_path / "pre"), weights_of(tmp_path / "again"))


def test_a_moved_run_folder_resumes(pretrain_options, tmp_path, monkeypatch):
    run = start_pretrain(pretrain_options)
    list(itertools.islice(run, 8))
    run.close()
    (tmp_path / "pre").rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    last = resume_run("elsewhere").wait()
    assert last.folder == tmp_path / "elsewhere"
    assert last.reason == "completed"


def test_resume_reuses_the_kernels_and_notices_changed_images(pretrain_options, images, tmp_path):
    run = start_pretrain(pretrain_options)
    list(itertools.islice(run, 8))
    run.close()
    path = tmp_path / "pre" / "run.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["kernels"] = {"linear": "convolution", "attention": "blocks", "precision": "fp32"}
    facts["fingerprints"] = {images["a"]: "another"}
    path.write_text(json.dumps(facts), encoding="utf-8")
    run = resume_run(tmp_path / "pre")
    events = list(run)
    [warning] = [e for e in events if isinstance(e, WarningEvent)]
    assert "not the same as when the run began" in warning.message
    plain = load_model(tmp_path / "pre" / "model")
    assert isinstance(events[-1], FinishedEvent)
    assert plain is not None


def test_resume_refuses_what_would_change_the_result(pretrain_options, tmp_path):
    start_pretrain(pretrain_options)
    with pytest.raises(ConfigError, match="batch_size cannot change"):
        resume_run(tmp_path / "pre", batch_size=100)
    with pytest.raises(ConfigError, match="Did you mean 'steps'"):
        resume_run(tmp_path / "pre", step=100)
    with pytest.raises(RunError, match="holds no run"):
        resume_run(tmp_path)


def test_a_complete_run_says_so_and_computes_nothing(pretrain_options, tmp_path):
    before = start_pretrain(pretrain_options).wait()
    records = (tmp_path / "pre" / "events.jsonl").read_bytes()
    [event] = list(resume_run(tmp_path / "pre"))
    assert (event.reason, event.metrics) == ("completed", before.metrics)
    assert "is complete: 6 of 6 steps are done" in event.message
    assert "--steps" in event.message
    assert (tmp_path / "pre" / "events.jsonl").read_bytes() == records


def test_a_complete_run_goes_on_to_more_steps(pretrain_options, tmp_path):
    start_pretrain(pretrain_options).wait()
    with pytest.raises(ConfigError, match="has done 6 already"):
        resume_run(tmp_path / "pre", steps=6)
    run = resume_run(tmp_path / "pre", steps=9)
    events = list(run)
    assert [e.step for e in events if isinstance(e, StepEvent)] == [7, 8, 9]
    [warning] = [e for e in events if isinstance(e, WarningEvent)]
    assert "goes on to 9 steps instead of 6" in warning.message
    folder = RunFolder(tmp_path / "pre")
    assert (folder.config().steps, folder.facts()["steps"]) == (9, 9)
    assert folder.facts()["changed_steps"] == [{"at": 6, "from": 6, "to": 9}]
    assert (folder.status().state, folder.status().step) == ("completed", 9)
    [event] = list(resume_run(tmp_path / "pre"))
    assert "9 of 9" in event.message


def test_a_kill_right_after_steps_were_added_does_not_look_complete(pretrain_options, tmp_path):
    start_pretrain(pretrain_options).wait()
    resume_run(tmp_path / "pre", steps=9)  # never iterated
    assert len([e for e in resume_run(tmp_path / "pre") if isinstance(e, StepEvent)]) == 3


def test_more_steps_for_a_run_that_is_trained_elsewhere_are_refused(pretrain_options, tmp_path):
    run = start_pretrain(pretrain_options)
    next(event for event in run if isinstance(event, StepEvent))
    with pytest.raises(LockedError):
        resume_run(tmp_path / "pre", steps=60)
    assert RunFolder(tmp_path / "pre").config().steps == 6
    run.close()


def test_early_stopping_waits_anew_when_steps_are_given(pretrain_options, tmp_path):
    options = {**pretrain_options, "early_stopping": 1, "validate_every": 1, "steps": 20,
               "learning_rate": 1e-12}
    last = start_pretrain(options).wait()
    assert last.reason == "early"
    [event] = list(resume_run(tmp_path / "pre"))
    assert event.reason == "early"
    assert "ended early after" in event.message
    steps = [e.step for e in resume_run(tmp_path / "pre", steps=20) if isinstance(e, StepEvent)]
    assert steps[0] == last.step + 1


def test_a_run_without_a_checkpoint_says_that_it_starts_over(pretrain_options, tmp_path):
    run = start_pretrain({**pretrain_options, "checkpoint_every": 100})
    list(itertools.islice(run, 5))
    run.close()
    events = list(resume_run(tmp_path / "pre"))
    [warning] = [e for e in events if isinstance(e, WarningEvent)]
    assert "starts over from its first step" in warning.message
    assert [e.step for e in events if isinstance(e, StepEvent)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("given", "words"), [
    ("nothing", r"'nothing', which does not exist.*Models there are: pretrained_run"),
    ("pretraind_run", r"Did you mean 'pretrained_run'\?"),
    (".", r"a folder without a model.*Did you mean '.*pretrained_run', which lies inside"),
    ("file.txt", r"file\.txt', which is a file; it must be a run or model folder"),
    ("lab/net", r"A Hugging Face repository is written hf://lab/net"),
])
def test_a_pretrained_model_that_is_not_there_names_the_nearest(
    finetune_options, tmp_path, monkeypatch, given, words
):
    (tmp_path / "pretrained_run").mkdir()
    (tmp_path / "pretrained_run" / "run.json").write_text("{}", encoding="utf-8")
    (tmp_path / "file.txt").write_text("x", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=words) as caught:
        start_finetune({**finetune_options, "pretrained": given})
    assert caught.value.field == "pretrained"


def test_levels_that_the_pretrained_model_lacks_are_named(pretrain_options, finetune_options):
    start_pretrain(pretrain_options).wait()
    with pytest.raises(ConfigError, match=r"levels are \(1, 4\).*trained with the levels 1, 2 "):
        start_finetune({**finetune_options, "levels": (1, 4),
                        "pretrained": pretrain_options["output"]})


def test_a_pretrained_model_of_another_size_is_refused_by_name(
    pretrain_options, finetune_options
):
    start_pretrain(pretrain_options).wait()
    with pytest.raises(ConfigError, match="num_layers is 3; the pretrained model has 2"):
        start_finetune({**finetune_options, "num_layers": 3,
                        "pretrained": pretrain_options["output"]})


def test_a_subset_of_the_pretrained_levels_can_be_taken(pretrain_options, finetune_options):
    start_pretrain(pretrain_options).wait()
    last = start_finetune({**finetune_options, "levels": (1,),
                           "pretrained": pretrain_options["output"], "steps": 2}).wait()
    assert load_model(find_model(last.folder)).levels == (1,)


def test_validation_by_a_spatial_block(finetune_options):
    options = {k: v for k, v in finetune_options.items() if k not in {"val", "val_labels"}}
    events = list(start_finetune({**options, "val_fraction": 0.3, "steps": 3}))
    assert [e.step for e in events if isinstance(e, ValidationEvent)] == [3]


def test_validation_and_labels_by_a_cohort(finetune_options, images, tmp_path):
    rows = [f"{images[n]},{images[n + '_labels']},{s}" for n, s in (("a", "train"), ("b", "val"))]
    cohort = tmp_path / "cohort.csv"
    cohort.write_text("\n".join(["image,labels,split", *rows]) + "\n", encoding="utf-8")
    options = {k: v for k, v in finetune_options.items()
               if k not in {"val", "val_labels", "labels"}}
    events = list(start_finetune({**options, "images": [str(cohort)], "steps": 3}))
    assert [e.step for e in events if isinstance(e, ValidationEvent)] == [3]


def test_without_validation_the_last_model_is_taken(pretrain_options):
    del pretrain_options["val"]
    last = start_pretrain(pretrain_options).wait()
    assert find_model(last.folder).name == "model"


def test_finetuning_needs_labels(finetune_options):
    del finetune_options["labels"]
    with pytest.raises(ConfigError, match="each image needs its label"):
        start_finetune(finetune_options)


def test_class_weights_are_one_for_each_class(finetune_options):
    with pytest.raises(ConfigError, match="each of the 2 classes: rest, disc"):
        start_finetune({**finetune_options, "class_weights": (1.0, 2.0, 3.0)})


def test_seeds_give_different_weights(pretrain_options, tmp_path):
    start_pretrain(pretrain_options).wait()
    start_pretrain({**pretrain_options, "seed": 1, "output": str(tmp_path / "one")}).wait()
    assert not same(weights_of(tmp_path / "pre"), weights_of(tmp_path / "one"))


def test_preview_of_segmentation_has_four_panels_and_the_coarser_view(finetune_options):
    from imagecodecs import png_decode

    run = start_finetune({**finetune_options, "steps": 1})
    [path] = [e.path for e in run if isinstance(e, PreviewEvent)][:1]
    picture = np.asarray(png_decode(path.read_bytes()))
    assert picture.shape == (16 * 2 + 4, 16 * 4 + 12, 4)
    assert not picture[-1, -1, 3]  # the rest of the second line lets the viewer through


def test_whole_validation_images_are_predicted_and_scored(finetune_options, images):
    from napari_muvit.inference.scores import evaluate

    run = start_finetune({**finetune_options, "validate_whole": True, "steps": 3})
    events = list(run)
    *_, crops, whole = [e.metrics for e in events if isinstance(e, ValidationEvent)]
    assert whole.keys() == {"whole_mdsc", "whole_dice_rest", "whole_dice_disc"}
    [store] = (run.folder / "validation").iterdir()
    assert evaluate(store, images["b_labels"]).mdsc == pytest.approx(whole["whole_mdsc"])
    assert events[-1].metrics == {**crops, **whole}
    rows = RunFolder(run.folder).metrics()
    assert rows[-1]["whole_mdsc"] == pytest.approx(whole["whole_mdsc"])


def test_a_model_has_the_temperature_of_the_validation_it_was_kept_at(
    finetune_options, monkeypatch
):
    fitted = itertools.count(2)
    monkeypatch.setattr(segment_task, "best_temperature", lambda sums: float(next(fitted)))
    run = start_finetune({**finetune_options, "steps": 4, "validate_every": 1})
    found = [(e.metrics, e.is_best) for e in run if isinstance(e, ValidationEvent)]
    best = [metrics for metrics, is_best in found if is_best][-1]
    folder = RunFolder(run.folder)
    for is_best, metrics in ((True, best), (False, found[-1][0])):
        model = load_model(folder.model_folder(best=is_best))
        assert model.temperature == metrics["temperature"]
        assert model.meta.provenance["metrics"]["mdsc"] == metrics["mdsc"]
    assert [metrics["temperature"] for metrics, _ in found] == [2, 3, 4, 5]
    rows = [row for row in folder.metrics() if row["split"] == "val"]
    assert [row["temperature"] for row in rows] == [m["temperature"] for m, _ in found]


def test_whole_validation_needs_validation_images(finetune_options):
    options = {k: v for k, v in finetune_options.items() if k not in {"val", "val_labels"}}
    with pytest.raises(ConfigError, match="validate_whole is True without validation images"):
        start_finetune({**options, "validate_whole": True, "val_fraction": 0.3})
