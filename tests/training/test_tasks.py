"""What each task's options do to the loss, the gradients and the parameter groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from napari_muvit.config import FinetuneConfig, PretrainConfig, parse_config
from napari_muvit.data.labels import ClassTable, LabelClass
from napari_muvit.inference.scores import evaluate
from napari_muvit.models.factory import build_mae, build_segmenter
from napari_muvit.training.device import torch_settings
from napari_muvit.training.mae_task import MAETask, normalise_patches
from napari_muvit.training.segment_task import SegmentTask
from napari_muvit.training.task import StepSeed

TINY = {"images": "a", "output": "o", "levels": (1, 4), "crop_size": 16, "patch_size": 4,
        "dim": 48, "num_layers": 2, "heads": 2, "batch_size": 4}
TABLE = ClassTable(
    (LabelClass(0, "none", "#000000"), LabelClass(3, "x", "#ff0000"),
     LabelClass(5, "y", "#00ff00")),
    unlabelled=None, background=0)
SEED = StepSeed(0, 0)
PART = slice(0, 4)


def keep(*_):
    raise NotImplementedError


def mae_task(**options) -> MAETask:
    config = parse_config(PretrainConfig, {**TINY, "dim_decoder": 48, **options})
    torch.manual_seed(0)
    return MAETask(
        build_mae(config, 1, 2), 4, keep, mask_per_sample=config.mask_per_sample)


def segment_task(supervision=0.0, **options) -> SegmentTask:
    config = parse_config(FinetuneConfig, {**TINY, "labels": "b", **options})
    torch.manual_seed(0)
    model = build_segmenter(config, 1, 2, 3)
    return SegmentTask(model, TABLE, config, keep, supervision=supervision)


def batch(samples=4):
    generator = torch.Generator().manual_seed(1)
    box = torch.tensor([[[0.0, 0], [16, 16]], [[-24, -24], [40, 40]]], dtype=torch.float64)
    grid = (2, 3, 4, 4)
    fractions = torch.rand(samples, *grid, generator=generator)
    return {
        "img": torch.rand(samples, 2, 1, 16, 16, generator=generator),
        "bbox": box.expand(samples, -1, -1, -1),
        "valid": torch.ones(samples, 2, 16, 16, dtype=torch.bool),
        "target": torch.randint(-1, 3, (samples, 16, 16), generator=generator),
        "fractions": fractions / fractions.sum(2, keepdim=True),
        "fraction_valid": torch.ones(samples, 2, 4, 4, dtype=torch.bool),
    }


def whole_loss(task, given):
    prepared = task.prepare(given, SEED, 4, PART)
    return task.loss(prepared, task.totals(prepared))


def test_mae_loss_is_the_models_own_where_everything_is_valid():
    for loss in ("mse", "norm_mse"):
        task = mae_task(loss=loss)
        prepared = task.prepare(batch(), SEED, 4, PART)
        own = task.model(prepared["img"], prepared["bbox"], visible_idx=prepared["visible"])
        mine = task.loss(prepared, task.totals(prepared))
        assert float(mine.detach()) == pytest.approx(float(own["loss"].detach()), rel=1e-5)


@pytest.mark.parametrize("loss", ["mse", "norm_mse"])
def test_mae_errors_with_padding_agree_with_those_without(loss):
    task = mae_task(loss=loss)
    prepared = task.prepare(batch(), SEED, 4, PART)
    errors, weights, _ = task._errors(prepared)
    mine = (errors * weights).sum() / weights.sum()
    assert float(mine.detach()) == pytest.approx(
        float(task.loss(prepared, task.totals(prepared)).detach()), rel=1e-4)


def test_without_padding_nothing_is_weighed():
    task, given = mae_task(), batch()
    prepared = task.prepare(given, SEED, 4, PART)
    assert "valid" not in prepared
    weighed = {**prepared, "valid": given["valid"]}
    assert torch.equal(task.totals(prepared), task.totals(weighed))
    losses = [float(task.loss(b, task.totals(b)).detach()) for b in (prepared, weighed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    given["valid"][3, 1, 0] = False
    assert "valid" in task.prepare(given, SEED, 4, PART)


def test_padded_pixels_are_no_target():
    task = mae_task()
    given = batch()
    given["valid"][:, 1, :, 8:] = False
    prepared = task.prepare(given, SEED, 4, PART)
    image = prepared["img"]
    before = task.loss(prepared, task.totals(prepared))
    # What stands in masked padded pixels changes nothing: their tokens are not seen either.
    visible = torch.zeros(4, 32, dtype=torch.bool).scatter(1, prepared["visible"], True)
    hidden = ~visible.reshape(4, 2, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    changed = torch.where((hidden & ~prepared["valid"])[:, :, None], 99.0, image)
    assert not torch.equal(changed, image)
    after = task.loss({**prepared, "img": changed}, task.totals(prepared))
    assert float(before.detach()) == pytest.approx(float(after.detach()), rel=1e-5)


def test_padded_pixels_do_not_count_for_normalised_patches():
    patches = torch.rand(1, 1, 16)
    weights = torch.ones(1, 1, 16)
    weights[..., 8:] = 0
    changed = patches.clone()
    changed[..., 8:] = 50
    one, other = (normalise_patches(p, weights)[..., :8] for p in (patches, changed))
    assert torch.allclose(one, other)


@pytest.mark.parametrize("make", [mae_task, lambda: segment_task(supervision=1.0)])
def test_parts_of_a_batch_add_up(make):
    task = make()
    given = batch()
    if isinstance(task, MAETask):
        given["valid"][1, 1, :4] = False
    prepared = task.prepare(given, SEED, 4, PART)
    totals = task.totals(prepared)
    whole = task.loss(prepared, totals)
    parts = [{k: v[i:i + 1] for k, v in prepared.items()} for i in range(4)]
    split = sum(task.loss(part, totals) for part in parts)
    assert float(whole.detach()) == pytest.approx(float(split.detach()), rel=1e-5)


def test_masks_of_a_share_are_those_of_the_whole_batch():
    task = mae_task()
    whole = task.prepare(batch(), SEED, 4, PART)["visible"]
    given = {k: v[2:4] for k, v in batch().items()}
    assert torch.equal(task.prepare(given, SEED, 4, slice(2, 4))["visible"], whole[2:])
    assert not torch.equal(task.prepare(batch(), StepSeed(0, 1), 4, PART)["visible"], whole)


def test_masking_options_act():
    share = mae_task(masking_ratio=0.5).prepare(batch(), SEED, 4, PART)["visible"].shape[1] / 32
    assert share == 0.5
    counts = [(mae_task(masking_mode=mode).prepare(batch(), SEED, 4, PART)["visible"] < 16).sum()
              for mode in ("dirichlet", "random")]
    assert counts[0] != counts[1]


def test_levels_share_the_visible_patches_alike_within_a_batch_or_not():
    def fine_counts(**options):
        visible = mae_task(**options).prepare(batch(64), SEED, 64, slice(0, 64))["visible"]
        return (visible < 16).sum(1).tolist()

    # With one draw for all, the counts differ by chance alone.
    spreads = [np.std(fine_counts(mask_per_sample=own)) for own in (False, True)]
    assert spreads[1] > 1.5 * spreads[0]


def test_mae_scores_give_the_loss_of_each_level():
    task = mae_task()
    task.model.eval()
    prepared = task.prepare(batch(), SEED, 4, PART)
    with torch.no_grad():
        out = task.model(prepared["img"], prepared["bbox"], visible_idx=prepared["visible"],
                         return_all=True)
        metrics = task.metrics(task.scores(prepared))
    assert metrics["loss"] == pytest.approx(float(out["loss"]), rel=1e-5)
    assert [metrics["loss_level_1"], metrics["loss_level_4"]] == pytest.approx(
        out["loss_per_level"].tolist(), rel=1e-5)


def watched(task, part):
    """What the task's passes give as `part` of (logits, tokens), with its gradient."""
    seen = []
    original = task.model.forward_with_tokens

    def spy(*args):
        given = original(*args)
        given[part].retain_grad()
        seen.append(given[part])
        return given

    task.model.forward_with_tokens = spy
    return seen


def test_gradient_at_unlabelled_pixels_is_zero_for_the_whole_loss():
    task = segment_task(supervision=0.0)
    given = batch()
    logits = watched(task, 0)
    whole_loss(task, given).backward()
    hidden = (given["target"] == -1)[:, None].expand_as(logits[0])
    assert torch.all(logits[0].grad[hidden] == 0)


@pytest.mark.parametrize("loss", ["mse", "norm_mse"])
def test_gradient_at_padded_pixels_is_exactly_zero(loss):
    task = mae_task(loss=loss)
    given = batch()
    given["valid"][:, 1, :, 6:] = False  # through the middle of patches of 4 px
    outputs = []
    original = task.model.forward

    def spy(*args, **kwargs):
        out = original(*args, **kwargs)
        out["output"].retain_grad()
        outputs.append(out["output"])
        return out

    task.model.forward = spy
    whole_loss(task, given).backward()
    [output] = outputs
    valid = task.model.encoder.patchify(given["valid"][:, :, None].float()).flatten(1, 2) > 0
    assert torch.all(output.grad[~valid] == 0)
    assert output.grad[valid].abs().sum() > 0


def test_gradient_at_unlabelled_patches_of_coarser_levels_is_exactly_zero():
    task = segment_task(supervision=1.0, ce_weight=0, dice_weight=0)
    given = batch()
    given["fraction_valid"] = given["fraction_valid"].float()
    given["fraction_valid"][:, :, :2] = 0
    given["fractions"][:, :, :, :2] = float("nan")  # what nobody judged may be anything
    seen = watched(task, 1)
    whole_loss(task, given).backward()
    [tokens] = seen
    assert torch.all(tokens.grad[:, 1, :2] == 0)
    assert torch.all(tokens.grad[:, 1, 2:].abs().sum(-1) > 0)


def test_both_weights_of_the_loss_are_free():
    losses = {}
    for ce, dice in ((1, 0), (0, 1), (1, 1), (2, 3)):
        task = segment_task(ce_weight=ce, dice_weight=dice)
        losses[ce, dice] = float(whole_loss(task, batch()).detach())
    assert losses[1, 1] == pytest.approx(losses[1, 0] + losses[0, 1], rel=1e-5)
    assert losses[2, 3] == pytest.approx(2 * losses[1, 0] + 3 * losses[0, 1], rel=1e-5)


def test_class_weights_act():
    plain, weighted = segment_task(), segment_task(class_weights=(1.0, 1.0, 5.0))
    assert float(whole_loss(plain, batch()).detach()) != float(
        whole_loss(weighted, batch()).detach())


def test_background_is_left_out_of_dice_and_mean():
    task = segment_task()
    assert task.background == 0
    scores = torch.zeros(task.num_scores, dtype=torch.float64)
    scores[4:7] = torch.tensor([9.0, 1, 0])   # overlap
    scores[7:10] = torch.tensor([10.0, 2, 0])  # predicted
    scores[10:13] = torch.tensor([10.0, 2, 0])   # true
    metrics = task.metrics(scores)
    assert metrics["mdsc"] == pytest.approx(0.5)  # class y is nowhere, none is background
    assert metrics["dice_none"] == pytest.approx(0.9)


@pytest.mark.parametrize("classes", [3, 2, 1])
def test_mdsc_of_validation_is_that_of_evaluate(classes):
    task = segment_task()
    rng = np.random.default_rng(4)
    truth, guess = rng.integers(0, classes, (2, 20, 20))
    task.model.forward = lambda *_: torch.nn.functional.one_hot(
        torch.from_numpy(guess), 3).movedim(-1, 0)[None].float()
    given = {"img": None, "bbox": None, "target": torch.from_numpy(truth)[None]}
    found = task.metrics(task.scores(given))
    wanted = evaluate(TABLE.to_values(guess), TABLE.to_values(truth))
    assert found["mdsc"] == pytest.approx(wanted.mdsc, nan_ok=True)
    assert math.isnan(found["mdsc"]) == (classes == 1)  # nothing but background
    assert found["dice_none"] == pytest.approx(wanted.dice[0])


def test_level_supervision_reaches_the_encoder_and_is_weighted():
    losses = {}
    for weight in (0.0, 1.0, 2.0):
        task = segment_task(supervision=weight)
        losses[weight] = float(whole_loss(task, batch()).detach())
    assert losses[2.0] - losses[0.0] == pytest.approx(2 * (losses[1.0] - losses[0.0]), rel=1e-3)
    task = segment_task(supervision=1.0, ce_weight=0, dice_weight=0)
    whole_loss(task, batch()).backward()
    assert task.model.encoder.proj[1][0].weight.grad.abs().sum() > 0


def test_a_pretrained_encoder_learns_slower():
    rates = [group["rate"] for group in segment_task(pretrained="run").parameter_groups()]
    assert rates == [1.0, 0.1]
    rates = [g["rate"] for g in segment_task(pretrained="run", encoder_rate=0.5).parameter_groups()]
    assert rates == [1.0, 0.5]
    assert [group["rate"] for group in segment_task().parameter_groups()] == [1.0, 1.0]


def test_every_trained_parameter_is_in_one_group():
    for task in (mae_task(), segment_task(supervision=1.0)):
        listed = [id(p) for g in task.parameter_groups() for p in g["params"]]
        assert sorted(listed) == sorted(id(p) for p in task.modules.parameters())


def test_a_frozen_encoder_is_not_trained():
    task = segment_task(freeze_encoder=True)
    [group] = task.parameter_groups()
    assert {id(p) for p in group["params"]} == {id(p) for p in task.model.head.parameters()}
    task.train()
    assert not task.model.encoder.training


def test_places_name_image_and_box():
    task = mae_task()
    task.names = ("slide 7",)
    given = {**batch(), "image_index": torch.tensor([0, 0, 0, 0])}
    assert task.place(given, 2) == "image 'slide 7' at y 0..16, x 0..16"


REFUSED = {
    "nll_loss2d_forward", "nll_loss2d_backward", "upsample_linear1d_backward",
    "upsample_bicubic2d_backward", "grid_sampler_2d_backward", "grid_sampler_3d_backward",
    "cumsum", "put", "put_", "histc", "median", "kthvalue", "avg_pool3d_backward",
    "_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "reflection_pad2d_backward",
}
"""What torch refuses on CUDA when only deterministic kernels may be used.

Its interpolation in two and three axes is not among them: off the CPU it takes another way.
"""


class Called(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [
    mae_task, lambda: mae_task(loss="norm_mse", decoder_context="all"),
    lambda: segment_task(0.5, class_weights=(1, 2, 3)),
    lambda: segment_task(decoder="mask2former", norm="batch"),
])
def test_deterministic_runs_call_nothing_that_torch_refuses_on_cuda(make):
    task = make()
    task.train()
    with torch_settings(threads=None, deterministic=True), Called() as called:
        whole_loss(task, batch()).backward()
        with torch.no_grad():
            task.scores(task.prepare(batch(), SEED, 4, PART))
    assert "mm" in called.names
    assert not called.names & REFUSED
