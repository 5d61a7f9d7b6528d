"""`napari-muvit init`: a config file with every option explained, for given images."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from napari_muvit.config import (
    SCHEMA_VERSION,
    FinetuneConfig,
    Options,
    PretrainConfig,
    parse_config,
)
from napari_muvit.doors.options import Parser
from napari_muvit.doors.shell import say
from napari_muvit.errors import RunExistsError

KINDS: dict[str, type[Options]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}


def init(args: Sequence[str]) -> int:
    """Write a commented config for training on given images."""
    parser = Parser(prog="napari-muvit init", description=init.__doc__)
    parser.add_argument("kind", choices=list(KINDS), metavar="{pretrain,finetune}")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="Images to learn from.")
    parser.add_argument("--labels", nargs="+", default=None, metavar="LABELS",
                        help="One label image for each image (finetune); what lies beside the "
                             "images if absent.")
    parser.add_argument("--output", metavar="YAML", help="File to write; printed if absent.")
    given = parser.parse_strictly(args)
    text = config_text(given.kind, given.images, given.labels)
    if given.output is None:
        sys.stdout.write(text)
        return 0
    if Path(given.output).exists():
        raise RunExistsError(f"{given.output!r} exists; nothing is overwritten. Pass another name.")
    Path(given.output).write_text(text, encoding="utf-8")
    say(f"init: wrote {given.output}; start with "
        f"python -m napari_muvit.train {given.kind} --config {given.output}")
    return 0


def config_text(kind: str, images: Sequence[str], labels: Sequence[str] | None) -> str:
    """The config file for `images`, its levels chosen to suit them."""
    from napari_muvit import api

    pyramid = api.open_pyramid(images[0])
    crop_size, levels = api.suggest_crops(pyramid)
    values: dict[str, Any] = {
        "images": list(images), "levels": levels, "crop_size": [crop_size],
        "output": f"runs/{kind}",
    }
    if len(pyramid.spatial_shape) > 2:
        values["z"] = "all"  # a cube of 256 px a side fits no memory
    missing: list[str] = []
    if kind == "finetune":
        values["labels"] = list(
            labels or (_guess_labels(image, pyramid.num_times > 1) for image in images))
        missing = [path for path in values["labels"] if not _is_there(path)]
    config = parse_config(KINDS[kind], values)
    return "\n".join([*_header(kind), *_to_do(missing), *_commented(config)]) + "\n"


def _guess_labels(image: str, is_series: bool) -> str:
    """IMAGE_labels.ome.zarr if there is one, else where annotations of an image lie; of a time
    series those of the first time point.
    """
    from napari_muvit import api

    folder = "." if "://" in image else Path(image).parent
    annotations = api.annotation_path(image, folder)
    name = annotations.name.replace("_annotations.", "_labels.")
    labels = annotations.with_name(name)
    first = api.annotation_path(image, folder, {"t": 0}) if is_series else annotations
    return str(next((path for path in (labels, first, annotations) if path.exists()), first))


def _is_there(source: str) -> bool:
    return "://" in source or Path(source).exists()


def _to_do(missing: Sequence[str]) -> list[str]:
    """Lines that say which label images are guessed and do not exist yet."""
    if not missing:
        return []
    return ["# These label images do not exist yet. Correct 'labels' below, paint them in napari",
            "# (MuViT: Annotate), or bring outlines: napari-muvit annotate IMAGE GEOJSON",
            *(f"#   {path}" for path in missing)]


def _header(kind: str) -> list[str]:
    return [
        f"# Options of: python -m napari_muvit.train {kind} --config THIS_FILE",
        "# A flag on the command line wins over its line here; lines may be left out.",
        f"schema_version: {SCHEMA_VERSION}",
    ]


def _commented(config: Options) -> Iterator[str]:
    group = None
    values = config.model_dump(mode="json")
    for found, name, field in _grouped(config):
        if found != group:
            group = found
            yield f"\n# ---- {group}"
        yield from textwrap.wrap(field.description or "", 92, initial_indent="# ",
                                 subsequent_indent="#   ")
        style = None if isinstance(values[name], list) else False
        yield yaml.safe_dump({name: values[name]}, default_flow_style=style).strip()


def _grouped(config: Options) -> list[tuple[str, str, FieldInfo]]:
    """Group, name and field of every option, each group in one piece, as in the help."""
    groups: dict[str, list[tuple[str, str, FieldInfo]]] = {}
    for name, field in type(config).model_fields.items():
        extra = field.json_schema_extra
        group = str(extra.get("group", "options")) if isinstance(extra, dict) else "options"
        groups.setdefault(group, []).append((group, name, field))
    return [entry for entries in groups.values() for entry in entries]
