"""What a bioimage.io package says about its model: ``rdf.yaml`` as plain values, and a README.

Source of the format: https://github.com/bioimage-io/spec-bioimage-io, model description 0.5.

Axis letters: B batch, L levels, C channels, S spatial extent, A spatial axes, G patch grid,
D encoder width, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from napari_muvit import __version__
from napari_muvit.errors import InputError

FORMAT_VERSION = "0.5.5"
"""The oldest that knows softmax; newer readers take it."""
TOLERANCE = 1e-3
"""Of the test outputs, relative and absolute, on other machines; the format's own default."""

DEFAULT_LICENSE = "BSD-3-Clause"
PAPER = {
    "text": "A. Dominguez Mantes, G. La Manno, M. Weigert. MuViT: Multi-Resolution Vision "
            "Transformers for Learning Across Scales in Microscopy. CVPR 2026, arXiv:2602.24222.",
    "url": "https://arxiv.org/abs/2602.24222",
}
AXES = "tzyx"


@dataclass(frozen=True)
class About:
    """What only the person who exports knows.

    ``name`` of the model (5 to 128 letters, digits, spaces and ``_+-()``), ``license`` of the
    weights (an SPDX identifier), and the ``authors``.
    """

    name: str | None = None
    license: str = DEFAULT_LICENSE
    authors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Interface:
    """Shapes and meanings of a network's tensors.

    ``scales`` are the finest level's factors per axis; ``crop_size`` is in px per axis, None
    where any multiple of the patch will do; ``meta`` is what the model knows about images.
    """

    levels: tuple[float, ...]
    scales: tuple[float, ...]
    patch_size: tuple[int, ...]
    num_channels: int
    dim: int
    num_classes: int | None
    crop_size: tuple[int, ...] | None
    test_size: tuple[int, ...]
    num_parameters: int
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> str:
        """Name of the output tensor."""
        return "features" if self.num_classes is None else "probabilities"

    @property
    def axes(self) -> str:
        """Names of the spatial axes, of tzyx."""
        return AXES[-len(self.patch_size):]

    @property
    def axis_ids(self) -> list[str]:
        """Their names in the package, where t is written out."""
        return ["time" if axis == "t" else axis for axis in self.axes]

    @property
    def rule(self) -> dict[str, Any]:
        """The normalisation rule."""
        return dict(self.meta.get("normalization") or {})

    @property
    def gain(self) -> float | None:
        """Factor of a rule that is the same for every image, else None."""
        return 1 / self.rule["constant"] if self.rule.get("kind") == "constant" else None

    @property
    def classes(self) -> list[dict[str, Any]]:
        """Value, name and colour of every class, in channel order."""
        rows = list((self.meta.get("classes") or {}).get("classes", ()))
        if len(rows) == (self.num_classes or 0):
            return rows
        return [{"value": i, "name": f"class {i}"} for i in range(self.num_classes or 0)]

    @property
    def pixel_size(self) -> tuple[float, ...] | None:
        """Micrometres of a finest-level pixel per axis, where they are known."""
        found = self.meta.get("pixel_size")
        if not found or len(found) != len(self.axes) or not all(found):
            return None
        return tuple(size * scale for size, scale in zip(found, self.scales, strict=True))


def check_about(about: About) -> None:
    """Refuse what the format does not allow.

    Raises
    ------
    InputError
        Naming the field and its rule.
    """
    if about.name is not None and not re.fullmatch(r"[A-Za-z0-9_+\- ()]{5,128}", about.name):
        raise InputError(
            f"name is {about.name!r}; bioimage.io names have 5 to 128 letters, digits, spaces and "
            "_+-(). Pass another name."
        )
    if not re.fullmatch(r"[A-Za-z0-9.+\-]+", about.license):
        raise InputError(
            f"license is {about.license!r}; it must be an SPDX identifier. Pass for example "
            "CC-BY-4.0, or one of https://spdx.org/licenses."
        )
    if not all(name.strip() and "/" not in name for name in about.authors):
        raise InputError(
            f"authors are {about.authors}; each is a name without '/'. Pass for example "
            "'Ada Lovelace'."
        )


def describe(
    interface: Interface, about: About, arguments: Mapping[str, Any], digests: Mapping[str, str],
    timestamp: str, torch_version: str, largest: float,
) -> dict[str, Any]:
    """The values of ``rdf.yaml``.

    Parameters
    ----------
    arguments
        Of the architecture.
    digests
        sha256 of each tensor's file by its name, and of the ``weights``.
    largest
        Value of the test output; the format wants an absolute tolerance within 1 % of it.
    """
    verb = "Segmentation" if interface.num_classes else "Features"
    levels = _listed(interface.levels)
    return {
        "type": "model", "format_version": FORMAT_VERSION,
        "name": about.name or f"MuViT {verb.lower()} {len(interface.axes)}D",
        "description": f"{verb} from nested crops at the downsampling levels {levels} by a "
                       "multi-resolution vision transformer (MuViT).",
        "authors": [{"name": name} for name in about.authors],
        "cite": [dict(PAPER)], "license": about.license, "timestamp": timestamp,
        "documentation": "README.md",
        "tags": ["muvit", "vision-transformer", "multi-resolution", "pytorch", "napari",
                 verb.lower(), f"{len(interface.axes)}d"],
        "inputs": [_image(interface, digests), _boxes(interface, digests)],
        "outputs": [_output(interface, digests)],
        "weights": {"pytorch_state_dict": {
            "source": "weights.pt", "sha256": digests["weights"],
            "pytorch_version": torch_version, "dependencies": {"source": "environment.yaml"},
            "architecture": {
                "import_from": "napari_muvit.models.bioimageio", "callable": "build_network",
                "kwargs": dict(arguments),
            },
        }},
        "config": _config(interface, largest),
    }


def _config(interface: Interface, largest: float) -> dict[str, Any]:
    tolerance = {"relative_tolerance": TOLERANCE,
                 "absolute_tolerance": max(0.0, min(TOLERANCE, 0.005 * largest)),
                 "output_ids": [interface.output]}
    return {
        "bioimageio": {"model_parameter_count": interface.num_parameters,
                       "reproducibility_tolerance": [tolerance]},
        "napari_muvit": {
            "version": __version__, "levels": list(interface.levels), **interface.meta,
            "kind": "segmenter" if interface.num_classes else "encoder",
        },
    }


def _image(interface: Interface, digests: Mapping[str, str]) -> dict[str, Any]:
    names = interface.meta.get("channel_names") or ()
    if len(names) != interface.num_channels:
        names = [f"channel{i}" for i in range(interface.num_channels)]
    sizes = interface.crop_size or [
        {"min": tested, "step": patch}
        for tested, patch in zip(interface.test_size, interface.patch_size, strict=True)
    ]
    tensor = {
        "id": "image", "description": "Nested crops, one per level, normalised; padding is 0.",
        "axes": [
            {"type": "batch"}, _levels(interface),
            {"type": "channel", "channel_names": [str(name) for name in names]},
            *_places(interface, sizes),
        ],
        "data": {"type": "float32"}, "test_tensor": _file("image", digests),
    }
    if interface.gain is not None:
        tensor["description"] = "Nested crops, one per level; padding is 0."
        tensor["preprocessing"] = [
            {"id": "scale_linear", "kwargs": {"gain": interface.gain, "offset": 0.0}},
        ]
    return tensor


def _boxes(interface: Interface, digests: Mapping[str, str]) -> dict[str, Any]:
    return {
        "id": "boxes",
        "description": "Outer edges of each crop in full-resolution pixels; pixel i spans "
                       "i-0.5 to i+0.5.",
        "axes": [
            {"type": "batch"}, _levels(interface),
            {"type": "index", "id": "edge", "size": 2, "description": "lower, upper"},
            {"type": "index", "id": "axis", "size": len(interface.axes),
             "description": ", ".join(interface.axes)},
        ],
        "data": {"type": "float64"}, "test_tensor": _file("boxes", digests),
    }


def _output(interface: Interface, digests: Mapping[str, str]) -> dict[str, Any]:
    name = interface.output
    patch = (1,) * len(interface.axes) if interface.num_classes else interface.patch_size
    sizes: Sequence[Any] = [
        {"tensor_id": "image", "axis_id": axis} for axis in interface.axis_ids
    ]
    if interface.crop_size:
        sizes = [side // p for side, p in zip(interface.crop_size, patch, strict=True)]
    middle: list[dict[str, Any]]
    after: dict[str, Any] = {}
    if interface.num_classes:
        meaning = "Probability of each class for the pixels of the finest crop."
        after["postprocessing"] = [{"id": "softmax", "kwargs": {"axis": "channel"}}]
        middle = [{"type": "channel", "channel_names": [str(c["name"]) for c in interface.classes]}]
    else:
        meaning = "Encoder features, one per patch of each level."
        middle = [_levels(interface), {"type": "index", "id": "feature", "size": interface.dim}]
    return {
        "id": name, "description": meaning,
        "axes": [{"type": "batch"}, *middle, *_places(interface, sizes, patch)],
        "data": {"type": "float32"}, "test_tensor": _file(name, digests), **after,
    }


def _levels(interface: Interface) -> dict[str, Any]:
    return {"type": "index", "id": "level", "size": len(interface.levels),
            "description": f"Downsampling {_listed(interface.levels)}"[:128]}


def _places(
    interface: Interface, sizes: Sequence[Any], patch: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """The spatial axes; um where the size is fixed, for readers round a quotient of scales."""
    patch = patch or (1,) * len(interface.axes)
    um = interface.pixel_size if interface.crop_size else None
    found = []
    for i, name in enumerate(interface.axis_ids):
        is_time = name == "time"
        kind = "time" if is_time else "space"
        axis: dict[str, Any] = {"type": kind, "id": name, "size": sizes[i]}
        if um and not is_time:
            axis |= {"unit": "micrometer", "scale": um[i] * patch[i]}
        elif patch[i] != 1:
            axis["scale"] = float(patch[i])
        found.append(axis)
    return found


def _file(name: str, digests: Mapping[str, str]) -> dict[str, str]:
    return {"source": f"{name}.npy", "sha256": digests[name]}


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def readme(interface: Interface, about: About, description: Mapping[str, Any]) -> str:
    """Markdown that a person reads beside the model."""
    return "\n".join([
        f"# {description['name']}", "", str(description["description"]), "",
        f"Exported by napari-muvit {__version__}.", "",
        "## Use", "",
        "With napari-muvit installed, this folder is a model like any other:", "",
        *_usage(interface), "",
        "In PyTorch alone, `architecture` in `rdf.yaml` builds the network that `weights.pt` "
        "fits; it takes `image` and `boxes`.", "",
        "## Inputs and output", "", *_tensors(interface), "",
        "## Normalisation", "", _normalisation(interface), "",
        *_classes(interface),
        "## Validation", "", *_validation(interface), "",
        "## Licence", "", _licence(about), "",
        "## Citation", "", f"{PAPER['text']} <{PAPER['url']}>", "",
    ])


def _usage(interface: Interface) -> list[str]:
    call = ('labels = muvit.predict("IMAGE", "THIS FOLDER")' if interface.num_classes
            else 'features = muvit.features("IMAGE", "THIS FOLDER", level='
                 f'{interface.levels[0]:g})')
    return ["```", "import napari_muvit as muvit", call, "```"]


def _tensors(interface: Interface) -> list[str]:
    spatial = ", ".join(interface.axes)
    size = interface.crop_size
    sides = (" x ".join(map(str, size)) + " px" if size
             else f"any multiple of {_listed(interface.patch_size)} px")
    output = (
        f"`probabilities` (batch, class, {spatial}) for the pixels of the finest crop. The network "
        "itself gives logits; `rdf.yaml` adds the softmax as `postprocessing`."
        if interface.num_classes else
        f"`features` (batch, level, feature, {spatial}): {interface.dim} numbers for each patch "
        f"of {_listed(interface.patch_size)} px of every level's crop."
    )
    return [
        f"- `image` (batch, level, channel, {spatial}): crops of the same place at the "
        f"downsampling levels {_listed(interface.levels)}, finest first, each {sides}, centred on "
        "one another.",
        f"- `boxes` (batch, level, lower or upper edge, {spatial}): the outer edges of each crop "
        "in pixels of full resolution, where pixel i spans i-0.5 to i+0.5. Tools that cut an "
        "image into independent tiles cannot fill this in.",
        f"- {output}",
    ]


def _normalisation(interface: Interface) -> str:
    rule = interface.rule
    if interface.gain is not None:
        return (f"Intensities are divided by {rule['constant']:g}; `rdf.yaml` says so as "
                "`preprocessing`.")
    if rule.get("kind") == "percentile":
        low, high = rule["percentiles"]
        return (
            f"`image` is (intensity - p{low:g}) / (p{high:g} - p{low:g}) for each channel, with "
            "percentiles of the whole image's foreground at full resolution, not of the crop. "
            "The format has no word for that, so `rdf.yaml` states no `preprocessing`: normalise "
            "before you call the network, or let napari-muvit do it. Padding outside the image "
            "is 0 after normalisation."
        )
    if rule.get("kind") == "none":
        return "Intensities are taken as they are."
    return "Unknown: the model came without a rule. Ask who trained it."


def _classes(interface: Interface) -> list[str]:
    if not interface.num_classes:
        return []
    rows = [f"| {i} | {c['value']} | {c['name']} |" for i, c in enumerate(interface.classes)]
    return ["## Classes", "", "| channel | value in label images | name |", "| --- | --- | --- |",
            *rows, ""]


def _validation(interface: Interface) -> list[str]:
    provenance = interface.meta.get("provenance") or {}
    metrics = provenance.get("metrics") or {}
    shown = [f"- {name}: {value:.4g}" for name, value in metrics.items()
             if isinstance(value, (int, float))]
    head = (["While training, on its validation images:", "", *shown, ""] if shown else
            ["No validation was recorded when the model was trained.", ""])
    return [*head, "Predict images with known labels that the model has never seen, and compare: "
            "`napari-muvit evaluate PREDICTION TRUTH` gives Dice and IoU of every class."]


def _licence(about: About) -> str:
    if about.license == DEFAULT_LICENSE:
        return (
            "BSD-3-Clause is the licence of the napari-muvit code and stands here because no "
            "other was given. Weights may also owe something to the images they were trained on: "
            "check before you publish, and export again with `--license` if need be."
        )
    return (f"The weights are under {about.license}, chosen by who exported them. The "
            "napari-muvit code that runs them is under BSD-3-Clause.")
