"""The official project's names: what its tests and README rely on."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

import napari_muvit as muvit
from napari_muvit.errors import CheckpointError, InputError

SIZES = {2: (8, 12), 3: (4, 8, 8), 4: (4, 4, 8, 8)}
ENCODER = {"in_channels": 1, "levels": (1, 4), "patch_size": 4, "num_layers": 1, "dim": 96,
           "heads": 2}
MAE = {**ENCODER, "dim_decoder": 80, "num_layers_decoder": 1}


class Crops(muvit.MuViTDataset):
    """Random crops with random boxes, as the official tests have them."""

    def __init__(self, ndim: int = 2, count: int = 4) -> None:
        super().__init__()
        self._ndim, self._count = ndim, count

    def __len__(self) -> int:
        return self._count

    @property
    def n_channels(self) -> int:
        return 1

    @property
    def levels(self) -> tuple[int, ...]:
        return (1, 4)

    @property
    def ndim(self) -> int:
        return self._ndim

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(idx)
        return {
            "img": torch.randn(2, 1, *SIZES[self._ndim], generator=draw),
            "bbox": torch.randn(2, 2, self._ndim, generator=draw),
        }


def loader(ndim: int = 2) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(Crops(ndim), batch_size=2)


def autoencoder(ndim: int = 2, **options):
    torch.manual_seed(0)
    return getattr(muvit, f"MuViTMAE{ndim}d")(**{**MAE, **options})


@pytest.mark.parametrize("ndim", [2, 3, 4])
def test_names_and_attributes(ndim: int):
    model = autoencoder(ndim)
    encoder = model.encoder
    assert type(encoder) is getattr(muvit, f"MuViTEncoder{ndim}d")
    assert type(model.decoder[0]) is getattr(muvit, f"MuViTDecoder{ndim}d")
    assert type(model).ndim == encoder.ndim == ndim
    assert encoder.levels == (1, 4)
    assert encoder.patch_size == (4,) * ndim
    assert len(encoder.proj) == 2
    assert encoder.level_embed.shape == (2, 1, 1, 96)
    assert len(encoder.layers[0].rotary_pos_embs) == ndim
    x = torch.randn(1, 2, 1, *SIZES[ndim])
    assert encoder.compute_features(x).shape == (1, 2, 96, *(s // 4 for s in SIZES[ndim]))
    assert set(model(x)) == {"input", "output", "loss"}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("MuViTEncoder2d", "in_channels levels patch_size num_layers dim heads attention_mode "
         "use_level_embed rotary_mode rotary_base input_space dropout"),
        ("MuViTDecoder3d", "in_channels dim num_layers heads rotary_mode rotary_base dropout "
         "attention_mode"),
        ("MuViTMAE4d", "in_channels levels patch_size num_layers dim num_layers_decoder "
         "dim_decoder heads decoder_mode loss masking_ratio use_level_embed rotary_mode "
         "rotary_base attention_mode masking_mode input_space dropout"),
    ],
)
def test_constructors_take_the_official_arguments_in_order(name: str, arguments: str):
    official = arguments.split()
    parameters = list(inspect.signature(getattr(muvit, name)).parameters.values())
    assert [p.name for p in parameters[: len(official)]] == official
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[len(official):])


@pytest.mark.parametrize("name", ["MuViTEncoder", "MuViTMAE"])
def test_folders(tmp_path: Path, name: str):
    options = MAE if name == "MuViTMAE" else ENCODER
    model = getattr(muvit, f"{name}2d")(**options)
    model.save(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.yaml", "model.pth"]
    with pytest.raises(ValueError, match="already exists"):
        model.save(tmp_path / "model")
    model.save(tmp_path / "model", overwrite=True)
    with pytest.raises(ValueError, match="2 spatial axes"):
        getattr(muvit, f"{name}3d").from_folder(tmp_path / "model")
    again = getattr(muvit, f"{name}2d").from_folder(tmp_path / "model")
    assert again._config == model._config
    pairs = zip(again.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_folders_of_another_kind_are_refused(tmp_path: Path):
    autoencoder().save(tmp_path / "mae")
    with pytest.raises(CheckpointError, match="holds no MuViTEncoder2d"):
        muvit.MuViTEncoder2d.from_folder(tmp_path / "mae")
    with pytest.raises(CheckpointError, match="opposite direction"):
        autoencoder(attention_mode="coarse_to_fine").save(tmp_path / "other")


def test_fit_as_in_the_official_readme(tmp_path: Path):
    model, output = autoencoder(), tmp_path / "pretrained"
    before = model.encoder.proj[0][0].weight.detach().clone()
    model.fit(loader(), loader(), output=output, num_epochs=2, accelerator="cpu")
    assert not torch.equal(model.encoder.proj[0][0].weight, before)
    encoder = muvit.MuViTMAE2d.from_folder(output).encoder
    assert torch.equal(encoder.proj[0][0].weight, model.encoder.proj[0][0].weight)


def test_dry_fit_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    autoencoder(3).fit(
        loader(3), loader(3), output=None, dry=True, fast_dev_run=True, accelerator="cpu",
        precision="32-true",
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("num_nodes", 0), ("num_nodes", 2), ("strategy", "ddp"), ("logger", "wandb"),
        ("wandb_project", "mine"), ("args_namespace", object()), ("accelerator", "tpu"),
        ("precision", "16-mixed"),
    ],
)
def test_keywords_of_fit_that_mean_nothing_are_refused_by_name(keyword: str, value: object):
    name = "nodes" if value == 0 else keyword
    with pytest.raises(InputError, match=name):
        autoencoder().fit(loader(), loader(), output=None, dry=True, **{keyword: value})


def test_models_that_cannot_be_saved_are_refused_before_training(tmp_path: Path):
    model = autoencoder(token_coordinates="centre")
    with pytest.raises(CheckpointError, match="'span' formula only"):
        model.fit(loader(), loader(), output=tmp_path / "out", num_epochs=1)
    assert not (tmp_path / "out").exists()


def test_segmenters(tmp_path: Path):
    torch.manual_seed(0)
    encoder = muvit.MuViTMAE2d(**{**MAE, "num_layers": 3}).extract_levels((4,)).encoder
    model = muvit.MuViTSegmenter2d(encoder, 3, decoder="unetr", head_dim=16, norm="group").eval()
    x = torch.randn(2, 1, 1, 8, 12)
    assert model(x).shape == (2, 3, 8, 12)
    model.save(tmp_path / "model")
    again = muvit.MuViTSegmenter2d.from_folder(tmp_path / "model").eval()
    assert torch.equal(again(x), model(x))
    with pytest.raises(CheckpointError, match="already exists"):
        model.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="no 3D segmenter"):
        muvit.MuViTSegmenter3d.from_folder(tmp_path / "model")
    with pytest.raises(InputError, match="needs 3"):
        muvit.MuViTSegmenter3d(encoder, 3)


@pytest.mark.parametrize("ndim", [2, 3, 4])
def test_helpers_that_scripts_call(ndim: int):
    model = autoencoder(ndim)
    encoder, size = model.encoder, SIZES[ndim]
    x = torch.randn(3, 2, 1, *size)
    tokens, patches, coords = encoder.patch_embed(x)
    count = 2 * int(torch.tensor(size).prod()) // 4**ndim
    assert tokens.shape == (3, count, 96)
    assert patches.shape == (3, count, 4**ndim)
    assert torch.equal(coords, encoder.get_patch_coords(3, 2, *size))
    assert torch.equal(encoder.patch_space_transform(patches, inverse=True), patches)
    images = model.token_to_patch(patches)
    assert images.shape == (3, count, *[4] * ndim)
    corner = (0, 0, 0, *[slice(4)] * ndim)
    assert torch.equal(images[0, 0], x[corner])
    features, places, cut, rows, visible, masked = encoder.forward_masked(x, masking_ratio=0.5)
    assert features.shape == (3, count // 2, 96)
    assert torch.equal(places, coords)
    assert torch.equal(cut, patches)
    assert rows.tolist() == [[0], [1], [2]]
    assert torch.equal(torch.cat([visible, masked], 1).sort(1).values[2], torch.arange(count))
