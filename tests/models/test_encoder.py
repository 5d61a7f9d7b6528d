"""The encoder: counts, equivariance, precision, options, tracing."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from napari_muvit.errors import ChannelError, InputError
from napari_muvit.models.encoder import Encoder
from napari_muvit.models.mae import MAE

BASE = {"in_channels": 1, "patch_size": 8, "num_layers": 12, "dim": 512, "heads": 8}


def encoder(**options) -> Encoder:
    defaults = {"in_channels": 1, "levels": (1, 4), "patch_size": 4, "num_layers": 2,
                "dim": 48, "heads": 2}
    torch.manual_seed(0)
    return Encoder(**{**defaults, **options}).eval()


def crops(batch: int = 2, levels: tuple[float, ...] = (1, 4), size: tuple[int, ...] = (16, 24),
          centre: float = 100.0, dtype: torch.dtype = torch.float32):
    """Random nested crops and their boxes."""
    torch.manual_seed(1)
    x = torch.randn(batch, len(levels), 1, *size)
    half = torch.tensor(levels, dtype=dtype)[:, None] * torch.tensor(size, dtype=dtype) / 2
    middle = centre + torch.arange(batch, dtype=dtype)[:, None, None] * torch.ones(len(size))
    return x, torch.stack([middle - half, middle + half], dim=2).to(dtype)


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize(
    ("levels", "in_table", "exact"), [((1,), 25.24, 25_244_032), ((1, 8, 32), 25.31, 25_313_664)]
)
def test_parameter_counts_of_table_s1(levels, in_table, exact):
    """MuViT, Table S1, rows 'encoder'; the table cuts off after two decimals."""
    with torch.device("meta"):
        count = sum(p.numel() for p in Encoder(levels=levels, **BASE).parameters())
    assert count == exact
    assert math.floor(count / 1e4) / 100 == in_table


@pytest.mark.parametrize(
    ("levels", "in_table", "exact"), [((1,), 26.44, 26_445_024), ((1, 8, 32), 28.88, 28_883_744)]
)
def test_parameter_counts_of_table_s1_with_mae(levels, in_table, exact):
    """MuViT, Table S1, rows '+ MAE'."""
    with torch.device("meta"):
        count = sum(p.numel() for p in MAE(levels=levels, **BASE).parameters())
    assert count == exact
    assert math.floor(count / 1e4) / 100 == in_table


@pytest.mark.parametrize("policy", ["span", "centre"])
@pytest.mark.parametrize("shift", [64.0, 1e6])
def test_shifting_the_boxes_changes_nothing(policy, shift):
    model = encoder(token_coordinates=policy)
    x, bbox = crops(dtype=torch.float64)
    assert error(model(x, bbox + shift)[0], model(x, bbox)[0]) <= 1e-6
    assert torch.allclose(model(x, bbox + shift)[1], model(x, bbox)[1] + shift, atol=1e-9)


@pytest.mark.parametrize("policy", ["span", "centre"])
@pytest.mark.parametrize("axis", [0, 1])
def test_flipping_crops_and_boxes_flips_the_features(policy, axis):
    """Both run the other way; patches are flat, so that each is its own mirror image."""
    model = encoder(token_coordinates=policy)
    x, bbox = crops()
    x = x[..., ::4, ::4].repeat_interleave(4, -1).repeat_interleave(4, -2)
    flipped = bbox.clone()
    flipped[..., axis] = bbox.flip(2)[..., axis]
    straight = model.compute_features(x, bbox)
    assert error(model.compute_features(x.flip(3 + axis), flipped).flip(3 + axis), straight) <= 2e-6
    assert error(model.compute_features(x.flip(3 + axis), bbox).flip(3 + axis), straight) > 0.01


@pytest.mark.parametrize("far", [0.0, 5e4, 1e6])
@pytest.mark.parametrize("policy", ["span", "centre"])
def test_float64_boxes_are_exact_anywhere(far, policy):
    model = encoder(levels=(1, 8, 32), num_layers=4, dim=64, token_coordinates=policy)
    x, bbox = crops(1, (1, 8, 32), (64, 64), centre=far + 0.37, dtype=torch.float64)
    exact = copy.deepcopy(model).double()(x.double(), bbox)[0]
    assert error(model(x, bbox)[0], exact) <= 1e-6


def test_scales_policy_starts_at_wavelengths_of_patches_and_views():
    model = encoder(rope_frequencies="scales", crop_size=(16, 24), scaled_axes=(1,))
    wavelengths = [2 * math.pi / axis.inv_freq for axis in model.layers[1].rotary_pos_embs]
    ends = [(w[0].item(), w[-1].item()) for w in wavelengths]
    assert ends[0] == pytest.approx((8, 32), rel=1e-5)
    assert ends[1] == pytest.approx((8, 192), rel=1e-5)
    with pytest.raises(InputError, match="crop_size"):
        encoder(rope_frequencies="scales")


def test_policies_of_coordinates_differ_at_the_border():
    x, bbox = crops()
    span, centre = encoder()(x, bbox), encoder(token_coordinates="centre")(x, bbox)
    assert torch.equal(span[1][0, 0], bbox[0, 0, 0])
    assert torch.equal(centre[1][0, 0], bbox[0, 0, 0] + 2)
    assert not torch.equal(span[0], centre[0])


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("mode", ["all", "same", "coarse_to_fine"])
def test_batches_of_none_and_one(batch, mode):
    x, bbox = crops()
    model = encoder(attention_mode=mode)
    features, coords, level_idx = model(x[:batch], bbox[:batch])
    assert features.shape == (batch, 48, 48)
    assert coords.shape == (batch, 48, 2)
    assert level_idx.shape == (batch, 48)
    assert error(model(x, bbox)[0][:1], model(x[:1], bbox[:1])[0]) <= 1e-6 if batch else True


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.06)])
def test_half_precision(dtype, tolerance):
    x, bbox = crops(centre=7000.0)
    model = encoder()
    exact = model(x, bbox)[0]
    half = copy.deepcopy(model).to(dtype)(x.to(dtype), bbox)[0]
    assert half.dtype == dtype
    assert error(half, exact) <= tolerance
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert error(model(x, bbox)[0], exact) <= 0.06


def test_forward_layers_are_the_outputs_after_those_layers():
    x, bbox = crops()
    model = encoder(num_layers=3)
    (first, last), _coords, level_idx = model.forward_layers(x, bbox, layers=(0, 2))
    assert torch.equal(last, model(x, bbox)[0])
    short = encoder(num_layers=1)
    assert torch.equal(short.layers[0].norm1.weight, model.layers[0].norm1.weight)
    assert error(first, _run_first(model, x, bbox)) <= 1e-6
    assert level_idx[0].bincount().tolist() == [24, 24]


def _run_first(model: Encoder, x: torch.Tensor, bbox: torch.Tensor) -> torch.Tensor:
    tokens = model.tokenize(x, bbox)
    return model.layers[0](tokens.x, tokens.coords)


def test_checkpointed_activations_give_the_same_gradients():
    x, bbox = crops()
    gradients = []
    for is_checkpointed in (False, True):
        model = encoder()
        model.checkpoint_activations = is_checkpointed
        model(x, bbox)[0].square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


def test_extracted_levels_embed_as_before():
    model = encoder(levels=(1, 2, 4), rotary_mode="shared")
    x, bbox = crops(levels=(1, 2, 4))
    part = model.extract_levels((4, 1))
    assert part.levels == (4, 1)
    assert not part.training
    expected = model.tokenize(x, bbox).x.unflatten(1, (3, -1))
    found = part.tokenize(x[:, [2, 0]], bbox[:, [2, 0]]).x.unflatten(1, (2, -1))
    assert torch.equal(found, expected[:, [2, 0]])
    assert model.extract_levels((1, 2, 4), copy=False) is model
    assert model.extract_levels((1, 2, 4)) is not model
    with pytest.raises(InputError, match="Level 8 not found"):
        model.extract_levels((8,))


@pytest.mark.parametrize("mode", ["all", "causal", "same", "coarse_to_fine"])
def test_attention_maps_say_who_was_looked_at(mode):
    """A layer's values are weighed with exactly these numbers."""
    model = encoder(attention_mode=mode)
    x, bbox = crops()
    maps = model.attention_map(x, bbox, layer=1)
    assert maps.shape == (2, 2, 48, 2, 4, 6)
    tokens = model.tokenize(x, bbox)
    state = model.layers[0](tokens.x, tokens.coords, model.pattern(24))
    layer = model.layers[1]
    values = layer.keys_values(state, layer.table(tokens.coords))[1]
    mixed = (maps.flatten(3) @ values).transpose(1, 2).flatten(2)
    after = state + layer.attn.to_out(mixed)
    after = after + layer.ff(layer.norm2(after))
    assert error(after, model(x, bbox)[0]) <= 1e-6
    some = model.attention_map(x, bbox, layer=-1, queries=torch.tensor([3, 30]))
    assert torch.allclose(some, maps[:, :, [3, 30]], atol=1e-7)


def test_levels_may_come_as_numpy_or_lists():
    assert encoder(levels=np.array([1, 4])).levels == (1, 4)
    assert encoder(levels=[1, 4])._config["levels"] == (1, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": (1, 1)}, "different positive"),
        ({"levels": (-1, 4)}, "different positive"),
        ({"levels": ()}, "different positive"),
        ({"dim": 20}, "at least 20"),
        ({"attention_mode": "coarse"}, "Invalid attention_mode: 'coarse'"),
        ({"rotary_mode": "learned"}, "Invalid rotary_mode"),
        ({"input_space": "fft"}, "Invalid input_space"),
        ({"token_coordinates": "center"}, "Invalid token_coordinates"),
        ({"rope_frequencies": "log"}, "Invalid rope_frequencies"),
        ({"patch_size": (4, 4, 4)}, "each of the 2 spatial axes"),
    ],
)
def test_wrong_arguments_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        encoder(**options)


def test_wrong_input_is_refused_in_forward():
    model = encoder()
    x, bbox = crops()
    with pytest.raises(ChannelError):
        model(x.repeat(1, 1, 3, 1, 1), bbox)
    with pytest.raises(InputError, match="1 levels; the model has 2"):
        model(x[:, :1], bbox[:, :1])
    with pytest.raises(InputError, match="must divide the crop"):
        model(x[..., :-1], bbox)
    with pytest.raises(InputError, match="bbox has shape"):
        model(x, bbox[:1])


def test_values_are_not_looked_at():
    """Reversed, empty and non-finite boxes pass through: the official tests give such."""
    model = encoder()
    x, bbox = crops()
    model(x, bbox.flip(2))
    model(x, torch.zeros_like(bbox))
    assert model(x, torch.full_like(bbox, torch.nan))[0].isnan().all()


@pytest.mark.parametrize("mode", ["all", "coarse_to_fine"])
def test_export(mode):
    model = encoder(attention_mode=mode, num_layers=1)
    x, bbox = crops()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (x, bbox), dynamic_shapes=({0: batch}, {0: batch}))
    assert error(program.module()(x, bbox)[0], model(x, bbox)[0]) <= 2e-6
    assert error(program.module()(x[:1], bbox[:1])[0], model(x[:1], bbox[:1])[0]) <= 2e-6


def test_the_whole_forward_pass_is_one_graph():
    model = encoder(num_layers=1)
    x, bbox = crops()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert error(compiled(x, bbox)[0], model(x, bbox)[0]) <= 2e-6


@pytest.mark.parametrize("use_level_embed", [True, False])
def test_some_patches_are_embedded_as_all_are(use_level_embed):
    model = encoder(use_level_embed=use_level_embed).double()
    with torch.no_grad():
        for parameter in model.proj.parameters():
            parameter.add_(torch.randn_like(parameter) / 3)
    x, bbox = crops()
    index = torch.stack([torch.randperm(model.tokenize(x, bbox).x.shape[1])[:7] for _ in x])
    every = model.tokenize(x.double(), bbox).x.gather(1, index[..., None].expand(-1, -1, model.dim))
    some = model.embed_some(model.cut(x.double(), bbox), index)
    assert torch.allclose(some, every, rtol=0, atol=1e-12)
    learnt = [p for n, p in model.named_parameters() if n.startswith(("proj", "level_embed"))]
    grads = [torch.autograd.grad(t.pow(3).sum(), learnt) for t in (some, every)]
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's compiler imports it
def test_compiled_code_gives_the_same_features():
    model = encoder(num_layers=1)
    x, bbox = crops()
    assert error(torch.compile(model, fullgraph=True)(x, bbox)[0], model(x, bbox)[0]) <= 2e-6
