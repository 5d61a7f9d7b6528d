"""bioimage.io model packages: ``rdf.yaml``, weights, test tensors and a README in a folder.

Source of the format: https://github.com/bioimage-io/spec-bioimage-io, model description 0.5.
A package names `build_network` as its architecture, so that name, module and arguments stay.

Axis letters: B batch, L levels, C channels, S spatial extent, A spatial axes, G patch grid,
D encoder width, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_muvit.errors import CheckpointError, MuvitError
from napari_muvit.models.bioimageio_text import About, Interface, check_about, describe, readme
from napari_muvit.models.encoder import Encoder
from napari_muvit.models.mae import MAE
from napari_muvit.models.model_files import (
    as_lists,
    as_tuples,
    filled_folder,
    load_state,
    plain_values,
    read_safe_yaml,
    read_text,
    replace_file,
)
from napari_muvit.models.official_folder import read_weights
from napari_muvit.models.segmenter import Segmenter
from napari_muvit.models.tokens import naive_boxes, patch_grid

__all__ = ["About", "FeatureMaps", "build_network", "load_bioimageio", "save_bioimageio"]

RDF_FILE = "rdf.yaml"
README_FILE = "README.md"
ENVIRONMENT_FILE = "environment.yaml"
PACKAGE_WEIGHTS_FILE = "weights.pt"
TEST_ORIGIN = 1000.0
"""World px along every axis where the test crop is centred; anywhere but 0 tests the boxes."""
FREE_GRID = 4
"""Patches along a side of the test crop where the model does not say its crop size."""


class FeatureMaps(nn.Module):
    """An encoder whose features come as maps, one for each level.

    Parameters
    ----------
    encoder
        2D, 3D or 4D.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, bbox: Tensor | None = None) -> Tensor:
        """Features (B, L, D, *G) of crops (B, L, C, *S) in boxes (B, L, 2, A), world px."""
        features: Tensor = self.encoder(x, bbox)[0]
        grid = patch_grid(x.shape[3:], self.encoder.patch_size)
        return features.reshape(*x.shape[:2], *grid, -1).movedim(-1, 2)


def build_network(
    encoder: Mapping[str, Any], segmenter: Mapping[str, Any] | None = None
) -> FeatureMaps | Segmenter:
    """The network of a package, with new weights: what ``architecture`` in ``rdf.yaml`` calls.

    Parameters
    ----------
    encoder
        Constructor arguments of `Encoder`.
    segmenter
        Those of `Segmenter`; without them the network gives features.
    """
    built = Encoder(**as_tuples(encoder))
    return FeatureMaps(built) if segmenter is None else Segmenter(built, **as_tuples(segmenter))


def save_bioimageio(
    folder: str | Path, model: nn.Module, meta: Mapping[str, Any] | None = None,
    about: About | None = None,
) -> None:
    """Write a segmenter, or the encoder of an autoencoder, as a bioimage.io package.

    Parameters
    ----------
    folder
        New or empty; what cannot be written whole leaves nothing there.
    meta
        What the model must know about images, as plain values (``ModelMeta.to_dict``).

    Raises
    ------
    CheckpointError
        If the folder holds something, or the model is of another kind.
    InputError
        If `about` holds what the format refuses.
    """
    folder, about = Path(folder), about or About()
    check_about(about)
    _check_empty(folder)
    arguments, state = _parts(model)
    network = build_network(**arguments)
    load_state(network, state, folder)
    with filled_folder(folder) as made:
        _write_package(made, network, _interface(network, arguments, meta or {}), arguments, about)


def _write_package(
    folder: Path, network: FeatureMaps | Segmenter, interface: Interface,
    arguments: Mapping[str, Any], about: About,
) -> None:
    """Write weights, test tensors and what is said about them."""
    tensors = _test_tensors(network, interface)
    digests = {name: _write_array(folder, name, values) for name, values in tensors.items()}
    state = dict(network.state_dict())
    digests["weights"] = _write(
        folder / PACKAGE_WEIGHTS_FILE, lambda path: torch.save(state, path))
    largest, now = float(tensors[interface.output].max()), datetime.now(UTC)
    description = describe(interface, about, arguments, digests, now.isoformat(timespec="seconds"),
                           torch.__version__.split("+")[0], largest)
    _write_text(folder / README_FILE, readme(interface, about, description))
    _write_text(folder / ENVIRONMENT_FILE, _environment())
    text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True, width=100)
    _write_text(folder / RDF_FILE, text)


def load_bioimageio(folder: str | Path) -> tuple[Encoder | Segmenter, dict[str, Any]]:
    """The model in a package that `save_bioimageio` wrote, and what it knows about images.

    No name in the package is imported: it must name `build_network`.

    Raises
    ------
    CheckpointError
        If it is of another architecture, damaged, or its weights have another fingerprint.
    """
    folder = Path(folder)
    path = folder / RDF_FILE
    description = read_safe_yaml(read_text(path), path)
    try:
        weights = description["weights"]["pytorch_state_dict"]
        architecture = weights["architecture"]
        named = (architecture["import_from"], architecture["callable"])
        source, digest = folder / Path(weights["source"]).name, weights["sha256"]
        meta = dict(description["config"]["napari_muvit"])
        arguments = dict(architecture["kwargs"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{str(path)!r} is no package of ours: {error!r} is missing or garbled. Only "
            "packages that napari-muvit exported can be read."
        ) from None
    if named != (__name__, build_network.__name__):
        raise CheckpointError(
            f"{str(path)!r} names the architecture {'.'.join(map(str, named))}; read are only "
            "packages that napari-muvit exported."
        )
    if source.is_file() and _sha256(source) != digest:
        raise CheckpointError(f"{str(source)!r} is not what {RDF_FILE} was written for: its "
                              "sha256 differs. Copy the package again.")
    try:
        network = build_network(**arguments)
    except (TypeError, MuvitError) as error:
        raise CheckpointError(f"the model in {str(folder)!r} cannot be built: {error}.") from None
    load_state(network, read_weights(source), folder)
    return (network.encoder if isinstance(network, FeatureMaps) else network), meta


def _check_empty(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(
            f"{str(folder)!r} is not empty; nothing is overwritten. Pass another folder."
        )


def _parts(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments of `build_network` and the weights of what it builds."""
    network = model
    if isinstance(model, MAE):
        network = FeatureMaps(model.encoder)
    elif isinstance(model, Encoder):
        network = FeatureMaps(model)
    elif not isinstance(model, Segmenter):
        raise CheckpointError(
            f"a {type(model).__name__} cannot be exported; a package holds a segmenter or an "
            "encoder. Pass one of these."
        )
    encoder = cast(Any, network).encoder
    arguments = {"encoder": _plain(encoder.config())}
    if isinstance(network, Segmenter):
        arguments["segmenter"] = _plain(network._config)
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    return arguments, state


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return cast(dict[str, Any], as_lists(plain_values(values)))


def _interface(
    network: FeatureMaps | Segmenter, arguments: Mapping[str, Any], meta: Mapping[str, Any]
) -> Interface:
    """Shapes and meanings of what goes in and comes out."""
    encoder = network.encoder
    known = meta.get("crop_size") or encoder.crop_size
    return Interface(
        levels=encoder.levels, scales=encoder.scales[0], patch_size=encoder.patch_size,
        num_channels=encoder.in_channels, dim=encoder.dim,
        num_classes=arguments.get("segmenter", {}).get("num_classes"),
        crop_size=None if known is None else tuple(int(side) for side in known),
        test_size=tuple(known or (FREE_GRID * side for side in encoder.patch_size)),
        num_parameters=sum(p.numel() for p in network.parameters()), meta=dict(meta),
    )


@torch.no_grad()
def _test_tensors(
    network: FeatureMaps | Segmenter, interface: Interface
) -> dict[str, NDArray[Any]]:
    """One crop of noise somewhere in the world, and what the network makes of it."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, len(interface.levels), interface.num_channels, *interface.test_size)
    image = torch.randn(shape, generator=generator)
    boxes = naive_boxes(network.encoder.scales, interface.test_size, "centre").double()
    boxes = boxes + TEST_ORIGIN
    gain = interface.gain
    raw = image if gain is None else image.abs() / gain
    seen = raw if gain is None else raw * gain
    output: Tensor = network.eval()(seen, boxes)
    if isinstance(network, Segmenter):
        output = output.softmax(dim=1)
    return {"image": raw.numpy(), "boxes": boxes.numpy(), interface.output: output.numpy()}


def _environment() -> str:
    from napari_muvit import __version__

    return yaml.safe_dump({
        "name": "napari-muvit", "channels": ["conda-forge"],
        "dependencies": [
            "python>=3.11,<3.14", f"pytorch=={torch.__version__.split('+')[0]}", "pip",
            {"pip": [f"napari-muvit=={__version__}"]},
        ],
    }, sort_keys=False)


def _write_array(folder: Path, name: str, values: NDArray[Any]) -> str:
    def write(path: Path) -> None:
        with path.open("wb") as file:  # numpy would append .npy to a path
            np.save(file, values, allow_pickle=False)

    return _write(folder / f"{name}.npy", write)


def _write_text(path: Path, text: str) -> None:
    _write(path, lambda place: place.write_text(text, encoding="utf-8"))


def _write(path: Path, write: Callable[[Path], object]) -> str:
    replace_file(path, write)
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
