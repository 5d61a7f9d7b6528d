"""Both heads on small encoders: sizes of the paper, every parameter at work, true places."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from napari_muvit.errors import InputError
from napari_muvit.geometry import crop_extents, place_boxes
from napari_muvit.models.encoder import Encoder
from napari_muvit.models.kernels import KernelChoice, use_kernels
from napari_muvit.models.mask2former import Mask2Former
from napari_muvit.models.pixel_decoder import skip_layers, stage_factors
from napari_muvit.models.segmenter import Segmenter
from napari_muvit.models.unetr import UNETR

HEADS = ("unetr", "mask2former")


def build(
    decoder: str = "unetr", levels: tuple[float, ...] = (1, 4), patch: Any = 4, ndim: int = 2,
    channels: int = 2, num_classes: int = 3, encoder: dict[str, Any] | None = None, **head: Any,
) -> Segmenter:
    """A small segmenter with a fixed seed."""
    torch.manual_seed(0)
    made = Encoder(
        channels, levels, patch, num_layers=3, dim=32 * ndim, heads=2, ndim=ndim,
        **(encoder or {}),
    )
    return Segmenter(
        made, num_classes, decoder=decoder, **{"head_dim": 32, **head},  # type: ignore[arg-type]
    )


def draw(model: Segmenter, batch: int = 2, size: int = 16, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Pixels and nested float64 boxes somewhere in an image."""
    generator = torch.Generator().manual_seed(seed)
    levels, ndim = model.levels, model.ndim
    x = torch.randn(
        batch, len(levels), model.encoder.in_channels, *[size] * ndim, generator=generator
    )
    extents = crop_extents(levels, size, ndim, tuple(range(ndim)))
    boxes = []
    for _ in range(batch):
        room = torch.rand(ndim, generator=generator).double().numpy() * (extents[-1:] - extents)
        boxes.append(torch.from_numpy(place_boxes(extents, corner=room)))
    return x, torch.stack(boxes) if boxes else torch.zeros(0, len(levels), 2, ndim).double()


def count(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.parametrize("decoder", HEADS)
def test_a_temperature_divides_logits_and_nothing_else(decoder: str) -> None:
    model = build(decoder, encoder={"attention_mode": "coarse_to_fine"}).eval()
    x, bbox = draw(model)
    with torch.no_grad():
        plain, tokens = model.forward_with_tokens(x, bbox)
        model.temperature = 2.5
        warm, same = model.forward_with_tokens(x, bbox)
        fine = model.forward_fine(x[:, :1], bbox, model.encode_context(x[:, 1:], bbox[:, 1:]))
    assert torch.equal(warm, plain / 2.5)
    assert torch.equal(same, tokens)
    assert torch.allclose(fine, warm, rtol=0, atol=1e-5)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="number above 0"):
            build(decoder, temperature=wrong)


@pytest.mark.parametrize(
    ("decoder", "levels", "published", "published_encoder"),
    [
        ("mask2former", (1,), 33.44, 25.24), ("mask2former", (1, 8, 32), 36.80, 25.31),
        ("unetr", (1,), 31.66, 25.24), ("unetr", (1, 8, 32), 35.02, 25.31),
    ],
)
def test_parameter_counts_are_those_of_table_s1(
    decoder: Any, levels: tuple[int, ...], published: float, published_encoder: float
) -> None:
    with torch.device("meta"):
        encoder = Encoder(1, levels, 8, num_layers=12, dim=512, heads=8)
        model = Segmenter(encoder, 12, decoder=decoder)
    assert round(count(encoder), 2) == published_encoder
    assert count(model) == pytest.approx(published, rel=0.005)
    assert count(model.head) == pytest.approx(published - published_encoder, rel=0.02)
    assert model.skip_layers == (0, 5, 11)


FORMS: list[dict[str, Any]] = [
    {"levels": (1,)},
    {"levels": (2, 8, 32), "patch": 2},
    {"levels": (1, 2), "patch": 1, "size": 6},
    {"levels": (1, 4), "patch": 16, "size": 32},
    {"levels": (1, 2), "patch": (2, 8), "size": 16},
    {"levels": (1, 2), "patch": (1, 4, 4), "ndim": 3, "size": 8},
]


@pytest.mark.parametrize("decoder", HEADS)
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_head_parameter_gets_a_gradient(
    decoder: str, norm: str, form: dict[str, Any]
) -> None:
    form = dict(form)
    size = form.pop("size", 16)
    model = build(decoder, norm=norm, **form)
    x, bbox = draw(model, size=size)
    logits = model(x, bbox)
    assert logits.shape == (2, 3, *[size] * model.ndim)
    logits.square().mean().backward()
    largest = {
        name: 0.0 if p.grad is None else p.grad.abs().max().item()
        for name, p in model.head.named_parameters()
    }
    # A bias that a norm undoes still gets rounding errors, a millionth of the largest.
    idle = [name for name, value in largest.items() if value < 1e-5 * max(largest.values())]
    assert idle == []


@pytest.mark.parametrize("decoder", HEADS)
def test_heads_learn_a_small_batch_by_heart(decoder: str) -> None:
    model = build(decoder, norm="group")
    x, bbox = draw(model)
    target = torch.randint(0, 3, (2, 4, 4)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(x, bbox), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("decoder", HEADS)
@pytest.mark.parametrize("level", [1, 2])
def test_a_coarse_level_changes_the_logits(decoder: str, level: int) -> None:
    model = build(decoder, levels=(1, 4, 16)).eval()
    x, bbox = draw(model, batch=1)
    before = model(x, bbox)
    x[:, level] += torch.randn(x[:, level].shape)
    assert (model(x, bbox) - before).abs().max() > 1e-3


@pytest.mark.parametrize("decoder", HEADS)
def test_boxes_matter_but_not_where_the_world_begins(decoder: str) -> None:
    model = build(decoder).eval()
    x, bbox = draw(model)
    logits = model(x, bbox)
    torch.testing.assert_close(model(x, bbox + 1_000_000), logits, atol=1e-5, rtol=0)
    moved = bbox.clone()
    moved[:, 0] += 8
    assert (model(x, moved) - logits).abs().max() > 1e-4


def test_the_head_looks_coarse_features_up_where_they_lie() -> None:
    model = build("unetr", levels=(1, 4), patch=4).eval()
    x, _ = draw(model, batch=1)
    place = torch.tensor([[[0.0, 0.0], [16.0, 16.0]], [[0.0, 0.0], [64.0, 64.0]]])[None]
    layers = [torch.randn(1, 2, 4, 4, 64) for _ in model.skip_layers]
    before = model.head(layers, x[:, 0], place)
    far, near = ([t.clone() for t in layers] for _ in range(2))
    far[0][:, 1, 3, 3] += 1.0  # the coarse corner opposite to the finest crop
    near[0][:, 1, 0, 0] += torch.randn(64)  # the patch that holds it
    torch.testing.assert_close(model.head(far, x[:, 0], place), before, atol=0, rtol=0)
    assert (model.head(near, x[:, 0], place) - before).abs().max() > 1e-4


def test_without_boxes_crops_are_concentric() -> None:
    model = build(encoder={"token_coordinates": "centre"}).eval()
    x, _ = draw(model)
    boxes = torch.from_numpy(place_boxes(crop_extents((1, 4), 16, 2), center=(100.0, 100.0)))
    torch.testing.assert_close(
        model(x), model(x, boxes.expand(2, -1, -1, -1)), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("decoder", HEADS)
def test_a_frozen_encoder_stays_as_it_is(decoder: str) -> None:
    model = build(decoder, freeze_encoder=True, encoder={"dropout": 0.5}).train()
    assert not model.encoder.training
    assert model.head.training
    model(*draw(model)).square().mean().backward()
    assert all(p.grad is None and not p.requires_grad for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.head.parameters())
    model.freeze_encoder = False
    model.train()
    model(*draw(model)).square().mean().backward()
    assert model.encoder.training
    assert all(p.grad is not None for p in model.encoder.parameters())


def test_a_subset_of_levels() -> None:
    encoder = build(levels=(1, 4, 16)).encoder
    model = Segmenter(encoder.extract_levels((1, 16)), 3, head_dim=32)
    x, bbox = draw(model)
    assert model.levels == (1, 16)
    assert model(x, bbox).shape == (2, 3, 16, 16)
    torch.testing.assert_close(model.encoder.proj[1][0].weight, encoder.proj[2][0].weight)


def test_tokens_come_with_the_logits() -> None:
    model = build(levels=(1, 4, 16)).eval()
    x, bbox = draw(model)
    logits, tokens = model.forward_with_tokens(x, bbox)
    torch.testing.assert_close(logits, model(x, bbox))
    features = model.encoder(x, bbox)[0]
    torch.testing.assert_close(tokens.flatten(1, -2), features)
    assert tokens.shape == (2, 3, 4, 4, 64)


@pytest.mark.parametrize("decoder", HEADS)
def test_cached_coarse_levels_give_the_same_logits(decoder: str) -> None:
    model = build(
        decoder, levels=(1, 4, 16), encoder={"attention_mode": "coarse_to_fine"}
    ).eval()
    x, bbox = draw(model, batch=1)
    context = model.encode_context(x[:, 1:], bbox[:, 1:])
    fine = torch.cat([x, x + 1])  # two tiles that share one coarse context
    boxes = bbox.repeat(2, 1, 1, 1)
    boxes[1, 0] += 2
    got = model.forward_fine(fine[:, :1], boxes, context)
    whole = torch.cat([fine[:, :1], x[:, 1:].expand(2, -1, -1, -1, -1)], dim=1)
    torch.testing.assert_close(got, model(whole, boxes), atol=1e-5, rtol=0)


@pytest.mark.parametrize("decoder", HEADS)
@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches(decoder: str, batch: int) -> None:
    model = build(decoder, norm="group")
    logits = model(*draw(model, batch=batch))
    assert logits.shape == (batch, 3, 16, 16)
    logits.sum().backward()


@pytest.mark.parametrize("decoder", HEADS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions(decoder: str, dtype: torch.dtype) -> None:
    model = build(decoder).eval()
    x, bbox = draw(model)
    exact = model(x, bbox)
    converted = model.to(dtype)(x.to(dtype), bbox)
    assert converted.dtype == dtype
    tolerance = {torch.float64: 1e-5, torch.float16: 2e-2, torch.bfloat16: 0.2}[dtype]
    torch.testing.assert_close(converted.float(), exact, atol=tolerance, rtol=0)


@pytest.mark.parametrize("decoder", HEADS)
def test_half_precision_products_leave_logits_and_gradients_in_float32(decoder: str) -> None:
    model = build(decoder, norm="group")
    x, bbox = draw(model)
    exact = model(x, bbox)
    with use_kernels(KernelChoice(precision="bf16")):
        logits = model(x, bbox)
    assert logits.dtype == torch.float32
    error = (logits - exact).abs().max().item()
    assert 0 < error < 0.1
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("decoder", HEADS)
def test_compile_and_export(decoder: str) -> None:
    model = build(decoder).eval()
    x, bbox = draw(model)
    expected = model(x, bbox)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, bbox), expected, atol=1e-5, rtol=0)
    exported = torch.export.export(model, (x, bbox)).module()
    torch.testing.assert_close(exported(x, bbox), expected, atol=1e-5, rtol=0)


def test_heads_are_of_the_asked_kind_and_width() -> None:
    assert isinstance(build("unetr").head, UNETR)
    head = build("mask2former", num_queries=7).head
    assert isinstance(head, Mask2Former)
    assert head.queries.shape == (7, 32)
    assert build("mask2former", num_classes=40).head.queries.shape == (40, 32)  # type: ignore[union-attr]
    narrow, wide = build(head_dim=32).head, build(head_dim=64).head
    assert count(wide) > 2 * count(narrow)


def test_skip_layers_are_evenly_spaced() -> None:
    assert skip_layers(12, 3) == (0, 5, 11)
    assert skip_layers(4, 3) == (0, 1, 3)
    assert skip_layers(2, 3) == (0, 0, 1)
    assert skip_layers(6, 1) == (5,)


def test_stages_double_each_axis_as_often_as_its_patch_needs() -> None:
    assert stage_factors((8, 8)) == [(2, 2)] * 3
    assert stage_factors((2, 8)) == [(1, 2), (1, 2), (2, 2)]
    assert stage_factors((1, 1)) == [(1, 1)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"decoder": "unet"}, "known are 'unetr', 'mask2former' and 'linear'"),
        ({"norm": "layer"}, "'batch'"),
        ({"num_classes": 0}, "at least one class"),
        ({"head_dim": 20}, "multiple of 16"),
        ({"decoder": "mask2former", "num_queries": 2}, "at least as many queries"),
        ({"patch": 6}, "power of two"),
        ({"ndim": 4, "encoder": {}}, "2 and 3"),
    ],
)
def test_bad_arguments_are_explained(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build(**arguments)
