"""The official package and ours side by side: weights, options, masks, folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import napari_muvit
from napari_muvit import official as own

pytestmark = pytest.mark.parity

SIZES = {2: (32, 24), 3: (8, 16, 16), 4: (4, 8, 8, 8)}
ENCODER = {"in_channels": 2, "levels": (1, 4), "patch_size": 4, "num_layers": 2, "dim": 96,
           "heads": 2}
MAE = {**ENCODER, "num_layers_decoder": 2, "dim_decoder": 80}


def boxes(ndim: int, batch: int = 2, levels: tuple[float, ...] = (1, 4)) -> Tensor:
    centre = torch.rand(batch, 1, ndim) * 300
    half = torch.tensor(levels)[:, None] * torch.tensor(SIZES[ndim]) / 2
    return torch.stack([centre - half, centre + half], dim=2)


def images(ndim: int, batch: int = 2, levels: int = 2) -> Tensor:
    return torch.randn(batch, levels, 2, *SIZES[ndim])


def twins(make: Callable[..., nn.Module], make_own: Callable[..., nn.Module], **options: Any
          ) -> tuple[Any, Any]:
    """An official and an own model made with the same seed."""
    torch.manual_seed(0)
    theirs = make(**options)
    torch.manual_seed(0)
    mine = make_own(**options)
    return theirs, mine


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


@pytest.mark.parametrize("ndim", [2, 3, 4])
def test_a_seed_means_the_same_weights(official: SimpleNamespace, ndim: int) -> None:
    options = {**MAE, "dim": 96, "dim_decoder": 80}
    theirs, mine = twins(getattr(official, f"MuViTMAE{ndim}d"),
                         getattr(own, f"MuViTMAE{ndim}d"), **options)
    expected, found = theirs.state_dict(), mine.state_dict()
    assert list(expected) == list(found)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert theirs._config == mine._config
    assert [n for n, _ in theirs.named_parameters()] == [n for n, _ in mine.named_parameters()]


@pytest.mark.parametrize("rotary_mode", ["none", "fixed", "shared", "per_layer"])
@pytest.mark.parametrize("attention_mode", ["all", "causal", "same", "random"])
def test_encoder_options(
    official: SimpleNamespace, rotary_mode: str, attention_mode: str
) -> None:
    theirs, mine = twins(
        official.MuViTEncoder2d, own.MuViTEncoder2d, **ENCODER, rotary_mode=rotary_mode,
        attention_mode=attention_mode, use_level_embed=attention_mode != "same",
    )
    x, bbox = images(2), boxes(2)
    torch.manual_seed(1)
    expected = theirs(x, bbox, return_intermediate_idxs=(0,))
    torch.manual_seed(1)
    found = mine(x, bbox, return_intermediate_idxs=(0,))
    assert difference(found[0], expected[0]) <= 1e-6
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[2], expected[2])
    assert difference(found[3][0], expected[3][0]) <= 1e-6


@pytest.mark.parametrize("ndim", [2, 3, 4])
def test_naive_boxes_and_features(official: SimpleNamespace, ndim: int) -> None:
    theirs, mine = twins(getattr(official, f"MuViTEncoder{ndim}d"),
                         getattr(own, f"MuViTEncoder{ndim}d"), **ENCODER)
    x = images(ndim)
    assert difference(mine.compute_features(x), theirs.compute_features(x)) <= 1e-6
    assert torch.equal(mine.patch_embed(x)[2], theirs.patch_embed(x)[2])
    assert torch.equal(mine.patch_embed(x)[1], theirs.patch_embed(x)[1])
    shape = (2, 2, *SIZES[ndim])
    assert torch.equal(mine.get_patch_coords(*shape), theirs.get_patch_coords(*shape))


@pytest.mark.parametrize("rotary_mode", ["none", "fixed", "shared", "per_layer"])
def test_decoder_with_and_without_context(official: SimpleNamespace, rotary_mode: str) -> None:
    theirs, mine = twins(official.MuViTDecoder2d, own.MuViTDecoder2d, in_channels=32, dim=48,
                         heads=2, rotary_mode=rotary_mode)
    x, coords = torch.randn(2, 9, 32), torch.rand(2, 9, 2) * 50
    context, places = torch.randn(2, 14, 32), torch.rand(2, 14, 2) * 50
    assert difference(mine(x), theirs(x)) <= 1e-6
    assert difference(mine(x, coords), theirs(x, coords)) <= 1e-6
    given = (x, coords, context, places)
    assert difference(mine(*given), theirs(*given)) <= 1e-6


@pytest.mark.parametrize(
    ("decoder_mode", "loss", "masking_mode", "call"),
    [
        ("single", "mse", "dirichlet", {}),
        ("multi", "norm_mse", "dirichlet", {"consistent_levels": True}),
        ("multi_iso", "norm_mse", "random", {}),
        ("single", "norm_mse", (0.2, 0.8), {}),
        ("multi", "mse", (0.2, 0.8), {}),
        ("multi", "mse", (0.5, 0.9), {"masking_mode_is_ratio": True}),
        ("multi", "norm_mse", (0.5, 1.0), {"masking_mode_is_ratio": True}),
        ("multi_iso", "mse", (0.5, 0.9), {"masking_mode_is_ratio": True}),
    ],
)
def test_mae_options(
    official: SimpleNamespace, decoder_mode: str, loss: str, masking_mode: Any,
    call: dict[str, Any],
) -> None:
    """One seed gives the same masks, outputs, pictures and gradients."""
    theirs, mine = twins(official.MuViTMAE2d, own.MuViTMAE2d, **MAE, decoder_mode=decoder_mode,
                         loss=loss, masking_mode=masking_mode)
    x, bbox = images(2), boxes(2)
    torch.manual_seed(2)
    expected = theirs(x, bbox, return_all=True, **call)
    torch.manual_seed(2)
    found = mine(x, bbox, return_all=True, **call)
    assert set(found) == set(expected)
    assert torch.equal(found["mask"], expected["mask"])
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert found[key].shape == value.shape, key
        if value.is_floating_point():
            assert torch.allclose(found[key], value, rtol=1e-5, atol=3e-6), key
    expected["loss"].backward()
    found["loss"].backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, parameter in mine.named_parameters():
        if name not in gradients:
            assert parameter.grad is None, name
            continue
        # Differences count in proportion; tiny gradients are all rounding.
        scale = max(float(gradients[name].abs().max()), 1e-4 * largest)
        error = float((parameter.grad - gradients[name]).abs().max())
        assert error / scale <= (1e-3 if name.endswith("inv_freq") else 2e-5), name


def test_global_draws_go_on_alike(official: SimpleNamespace) -> None:
    """After a forward pass, both have used up the same global random numbers."""
    theirs, mine = twins(official.MuViTMAE2d, own.MuViTMAE2d, **MAE)
    x, after = images(2), []
    for model in (theirs, mine):
        for call in ({}, {"consistent_levels": True}):
            torch.manual_seed(3)
            model(x, **call)
            after.append(torch.rand(1))
    assert after[:2] == after[2:]


def test_consistent_masks_of_a_generator(official: SimpleNamespace) -> None:
    levels = (1, 4, 16)
    theirs, mine = twins(official.MuViTEncoder2d, own.MuViTEncoder2d,
                         **{**ENCODER, "levels": levels})
    x, found = images(2, levels=3), []
    for model in (theirs, mine):
        generator = torch.Generator().manual_seed(4)
        found.append(model.forward_masked(x, None, 0.75, "dirichlet", True, generator))
    assert torch.equal(found[0][4], found[1][4])
    assert torch.equal(found[0][5], found[1][5])
    assert difference(found[1][0], found[0][0]) <= 1e-6
    drawn = [
        model.consistent_level_mask_sampling(
            2, 96, 48, 0.75, torch.device("cpu"), torch.Generator().manual_seed(5))
        for model in (theirs, mine)
    ]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("rotary_mode", ["fixed", "shared", "per_layer"])
@pytest.mark.parametrize("kind", ["MuViTMAE2d", "MuViTEncoder3d"])
def test_folders_go_both_ways(
    official: SimpleNamespace, tmp_path: Path, kind: str, rotary_mode: str
) -> None:
    options = {**(MAE if "MAE" in kind else ENCODER), "rotary_mode": rotary_mode}
    mine = getattr(own, kind)(**options)
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    mine.save(tmp_path / "ours")
    reread = getattr(official, kind).from_folder(tmp_path / "ours")
    reread.save(tmp_path / "theirs")
    again = getattr(own, kind).from_folder(tmp_path / "theirs")
    loaded = napari_muvit.load_model(tmp_path / "theirs")
    x, results = images(int(kind[-2])), []
    for model in (mine, reread, again, loaded):
        encoder = getattr(model, "encoder", model)
        results.append(encoder(x)[0])
    assert mine._config == reread._config == again._config
    assert difference(results[1], results[0]) <= 1e-6
    assert torch.equal(results[2], results[0])
    assert torch.equal(results[3], results[0])


def test_level_subsets(official: SimpleNamespace) -> None:
    levels = (1.0, 2.0, 4.0)
    theirs, mine = twins(official.MuViTMAE2d, own.MuViTMAE2d, **{**MAE, "levels": levels})
    for wanted in ((2.0, 4.0), (4.0, 1.0), (2.0,)):
        expected, found = theirs.extract_levels(wanted), mine.extract_levels(wanted)
        x, bbox = images(2, levels=len(wanted)), boxes(2, levels=wanted)
        assert found._config == expected._config
        torch.manual_seed(5)
        a = expected(x, bbox)["output"]
        torch.manual_seed(5)
        assert difference(found(x, bbox)["output"], a) <= 2e-6
