"""The masked autoencoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from napari_muvit.errors import InputError
from napari_muvit.models import decoder as decoder_module
from napari_muvit.models.mae import MAE


def autoencoder(**options) -> MAE:
    torch.manual_seed(0)
    defaults = {"in_channels": 2, "levels": (1, 4), "patch_size": 4, "num_layers": 2, "dim": 48,
                "heads": 2, "dim_decoder": 40, "num_layers_decoder": 2}
    return MAE(**{**defaults, **options})


def crops(batch: int = 2, num_levels: int = 2, size: tuple[int, ...] = (16, 24)):
    torch.manual_seed(1)
    levels = torch.tensor([1.0, 4, 16][:num_levels])
    half = levels[:, None] * torch.tensor([float(s) for s in size]) / 2
    bbox = torch.stack([90 - half, 90 + half], dim=1).repeat(batch, 1, 1, 1)
    return torch.rand(batch, num_levels, 2, *size), bbox


def plain_decoding(model: MAE, x: Tensor, bbox: Tensor, visible: Tensor) -> Tensor:
    """All N tokens through every linear layer, as the paper has it."""
    tokens = model.encoder.tokenize(x, bbox)
    encoded = model.encoder.encode_visible(tokens, visible)
    count, num = len(model.encoder.levels), tokens.x.shape[1]
    vectors = model.mask_token.expand(1, count, -1).repeat_interleave(num // count, dim=1)
    z = vectors.repeat(len(x), 1, 1).scatter(
        1, visible[..., None].expand(-1, -1, encoded.shape[-1]), encoded)
    if model.decoder_mode == "single":
        return model.final(model.decoder(z, tokens.coords))
    parts = []
    for decoder, own, places in zip(
        model.decoder, z.chunk(count, dim=1), tokens.coords.chunk(count, dim=1), strict=True
    ):
        context = (z, tokens.coords) if model.decoder_mode == "multi" else ()
        parts.append(decoder(own, places, *context))
    return model.final(torch.cat(parts, dim=1))


@pytest.mark.parametrize("mode", ["single", "multi", "multi_iso"])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_sharing_masked_tokens_is_exact(mode, layers):
    model = autoencoder(decoder_mode=mode, num_layers_decoder=layers)
    x, bbox = crops()
    out = model(x, bbox, visible_idx=torch.tensor([[5, 40, 2], [47, 0, 1]]))
    expected = plain_decoding(model, x, bbox, torch.tensor([[5, 40, 2], [47, 0, 1]]))
    assert torch.allclose(out["output"], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("mode", ["single", "multi", "multi_iso"])
@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("visible", [
    [[5, 40, 2], [47, 0, 1]], [list(range(24)), list(range(12, 36))], [[], []],
])
def test_the_loss_alone_has_the_same_gradients(mode, layers, visible):
    """Also where a level has no masked token, or samples have different numbers of them."""
    model = autoencoder(decoder_mode=mode, num_layers_decoder=layers)
    x, bbox = crops()
    found = []
    for options in ({}, {"only_loss": True}):
        model.zero_grad()
        index = torch.tensor(visible, dtype=torch.long)
        loss = model(x, bbox, visible_idx=index, **options)["loss"]
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in model.named_parameters()}))
    (a, wanted), (b, got) = found
    assert torch.allclose(a, b, rtol=1e-6)
    for name, grad in wanted.items():
        assert (grad is None) == (got[name] is None), name
        if grad is not None:
            assert torch.allclose(grad, got[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("mode", ["single", "multi"])
def test_dropout_looks_at_every_masked_token(mode, monkeypatch):
    model = autoencoder(decoder_mode=mode, dropout=1e-12)
    x, bbox = crops()
    visible = torch.tensor([[5, 40, 2], [47, 0, 1]])
    shared = model.eval()(x, bbox, visible_idx=visible)["output"]
    monkeypatch.setattr(decoder_module, "MaskedKeys", None)
    each = model.train()(x, bbox, visible_idx=visible)["output"]
    assert torch.allclose(shared, each, rtol=0, atol=2e-6)


@pytest.mark.parametrize("loss", ["mse", "norm_mse"])
def test_the_loss_is_of_masked_patches_alone(loss):
    model = autoencoder(loss=loss)
    x, bbox = crops()
    visible = torch.arange(12).expand(2, -1)
    out = model(x, bbox, visible_idx=visible, return_all=True)
    target = out["input"]
    if loss == "norm_mse":
        spread = target.std(dim=-1, keepdim=True) + 1e-2
        target = (target - target.mean(dim=-1, keepdim=True)) / spread
    errors = (out["output"] - target).square()[:, 12:]
    assert torch.allclose(out["loss"], errors.mean())
    assert torch.allclose(out["loss_per_level"][0], errors[:, :12].mean())
    assert torch.allclose(out["loss_per_level"][1], errors[:, 12:].mean())
    only = model(x, bbox, visible_idx=visible, only_loss=True)
    assert set(only) == {"loss"}
    assert torch.allclose(only["loss"], out["loss"])


def test_pictures_show_what_was_hidden():
    model = autoencoder()
    x, bbox = crops()
    out = model(x, bbox, visible_idx=torch.arange(24).expand(2, -1), return_all=True)
    assert torch.equal(out["mask"].any(dim=(2, 3, 4)), torch.tensor([[False, True]] * 2))
    assert torch.equal(out["reco"][:, 0], x[:, 0])
    assert torch.equal(out["input_masked"][:, 1], torch.full_like(x[:, 1], 0.5))
    assert torch.equal(out["loss_per_level"][0], torch.tensor(0.0))


def test_masks_come_from_the_passed_generator():
    model = autoencoder()
    x, bbox = crops()
    masks = [
        model(x, bbox, return_all=True, **{name: torch.Generator().manual_seed(7)})["mask"]
        for name in ("generator", "rng_generator")
    ]
    assert torch.equal(*masks)
    other = model(x, bbox, return_all=True, generator=torch.Generator().manual_seed(8))["mask"]
    assert not torch.equal(masks[0], other)


def test_mask_weights_per_sample_is_an_option():
    model = autoencoder()
    x, bbox = crops(batch=8)

    def spread(seed: int, per_sample: bool) -> float:
        source = torch.Generator().manual_seed(seed)
        out = model(x, bbox, return_all=True, generator=source, mask_per_sample=per_sample)
        return float(out["mask"].float().mean(dim=(2, 3, 4))[:, 0].std())

    with torch.no_grad():
        common = sum(spread(seed, False) for seed in range(6))
        own = sum(spread(seed, True) for seed in range(6))
    assert own > 1.5 * common


def test_a_level_without_visible_tokens_is_reconstructed_too():
    model = autoencoder()
    x, bbox = crops()
    out = model(x, bbox, visible_idx=torch.arange(24, 48).expand(2, -1))
    out["loss"].backward()
    assert out["loss"].isfinite()
    assert model.decoder[0].layers[0].attn.to_k.weight.grad.abs().max() > 0


@pytest.mark.parametrize("mode", ["single", "multi"])
def test_visible_context_leaves_mask_tokens_out(mode):
    """What the first layer does with mask tokens changes nothing but their own queries."""
    model = autoencoder(decoder_mode=mode, decoder_context="visible", num_layers_decoder=1).eval()
    full = autoencoder(**{**model.config(), "decoder_context": "all"}).eval()
    full.load_state_dict(model.state_dict())
    x, bbox = crops()
    visible = torch.arange(0, 48, 4).expand(2, -1)
    coords = model.encoder.cut(x, bbox).coords
    seen = model(x, bbox, visible_idx=visible)
    assert not torch.allclose(seen["output"], full(x, bbox, visible_idx=visible)["output"])
    for only_loss in (True, False):
        loss = model(x, bbox, visible_idx=visible, only_loss=only_loss)["loss"]
        assert loss.item() == pytest.approx(seen["loss"].item(), rel=1e-5)
    # By the decoder's own forward pass with the visible tokens as context.
    encoded = model(x, bbox, visible_idx=visible, return_all=True)["encoded"]
    index = visible[..., None].expand(-1, -1, coords.shape[-1])
    z = torch.zeros(2, 48, encoded.shape[-1])
    z += model.mask_token.repeat_interleave(48 // model.mask_token.shape[1], dim=1)
    z = z.scatter(1, visible[..., None].expand_as(encoded), encoded)
    decoders = [model.decoder] if mode == "single" else list(model.decoder)
    for i, decoder in enumerate(decoders):
        rows = slice(None) if mode == "single" else slice(24 * i, 24 * (i + 1))
        if mode == "single":  # officially self-attention, whose context is normed
            layer, own = decoder.layers[0], decoder.embed(z)
            keys = layer.keys_values(decoder.embed(encoded), layer.table(coords.gather(1, index)))
            expected = layer(own, coords, None, keys)
        else:
            expected = decoder(z[:, rows], coords[:, rows], encoded, coords.gather(1, index))
        got = seen["output"][:, rows]
        assert torch.allclose(model.final(expected), got, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["single", "multi", "multi_iso"])
def test_every_parameter_learns(mode):
    model = autoencoder(decoder_mode=mode)
    x, bbox = crops()
    model(x, bbox, visible_idx=torch.arange(0, 48, 4).expand(2, -1))["loss"].backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("batch", [0, 1])
def test_batches_of_none_and_one(batch):
    x, bbox = crops(batch)
    out = autoencoder()(x, bbox, return_all=True)
    assert out["output"].shape == (batch, 48, 32)
    assert out["reco"].shape == x.shape


def test_volumes_over_time():
    model = autoencoder(ndim=4, dim=96, dim_decoder=80)
    x, bbox = crops(1, size=(4, 4, 8, 8))
    out = model(x, bbox, return_all=True)
    assert out["reco"].shape == x.shape


def test_bf16_autocast_is_close():
    model = autoencoder()
    x, bbox = crops()
    visible = torch.arange(0, 48, 4).expand(2, -1)
    exact = model(x, bbox, visible_idx=visible)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(x, bbox, visible_idx=visible, only_loss=True)["loss"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


@pytest.mark.parametrize("mode", ["single", "multi"])
def test_extracted_levels_reconstruct_as_before(mode):
    model = autoencoder(levels=(1, 4, 16), decoder_mode=mode, masking_mode=(0.1, 0.3, 0.6))
    part = model.extract_levels((16, 1))
    assert part.masking_mode == (0.6, 0.1)
    assert part.encoder.levels == (16, 1)
    x, bbox = crops(num_levels=3)
    alone = model.extract_levels((1, 16))
    a = alone(x[:, [0, 2]], bbox[:, [0, 2]], visible_idx=torch.tensor([[1, 30]] * 2))["output"]
    b = part(x[:, [2, 0]], bbox[:, [2, 0]], visible_idx=torch.tensor([[25, 6]] * 2))["output"]
    assert torch.allclose(a[:, :24], b[:, 24:], rtol=0, atol=5e-6)
    assert model.extract_levels((1, 4, 16), copy=False) is model


def test_coarse_to_fine_holds_for_visible_tokens():
    model = autoencoder(attention_mode="coarse_to_fine").eval()
    x, bbox = crops()
    visible = torch.tensor([[3, 30, 9], [30, 31, 2]])
    changed = x.clone()
    changed[:, 0] += 1
    a = model(x, bbox, visible_idx=visible, return_all=True)["encoded"]
    b = model(changed, bbox, visible_idx=visible, return_all=True)["encoded"]
    assert ((a - b).abs().amax(dim=-1) > 0).tolist() == (visible < 24).tolist()


def test_a_training_step_is_one_graph():
    model = autoencoder(num_layers=1, num_layers_decoder=1)
    x, bbox = crops()
    visible = torch.arange(0, 48, 4).repeat(2, 1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss = compiled(x, bbox, visible_idx=visible, only_loss=True)["loss"]
    loss.backward()
    expected = model(x, bbox, visible_idx=visible)["loss"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decoder_mode": "many"}, "Invalid decoder_mode"),
        ({"loss": "mse_fft"}, "Invalid loss"),
        ({"decoder_context": "masked"}, "Invalid decoder_context"),
        ({"masking_mode": (0.5,)}, "one for each level"),
        ({"dim_decoder": 16}, "at least 20"),
    ],
)
def test_wrong_arguments_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        autoencoder(**options)
