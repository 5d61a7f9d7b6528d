"""Images and labels of the published sets, found in the folders that their sources give.

Mouse: sections and pictures of their regions with the same name, the specimen (BM and a number)
in it. KPIS: the slides of the challenge's second task, ``NAME_wsi.tiff`` beside
``NAME_mask.tiff``, in a folder for each group, in one for each part of the split.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from napari_muvit.doors.shell import say
from napari_muvit.errors import InputError

PICTURES = (".tif", ".tiff", ".btf", ".png")
LABEL_WORDS = (
    "label", "labels", "region", "regions", "segmentation", "segmentations", "seg",
    "annotation", "annotations", "mask", "masks",
)
"""What marks a picture of regions: the last word of its name, or a word of a folder's."""

IMAGE_WORDS = ("dapi", "image", "img", "slice", "section")
HELD_OUT = "BM15"
SPLITS = (("train", "train"), ("val", "val"), ("test", "test"))
"""What the folder of a part begins with, in any of its words: KPIs24 Testing Data."""

GROUPS = {"56nx": "56Nx", "dn": "DN", "nep25": "NEP25", "normal": "normal"}


@dataclass(frozen=True)
class Download:
    """An image and its labels as they were downloaded; `name` is unique in its group."""

    name: str
    image: Path
    labels: Path
    split: str
    group: str


def find_mouse(folder: Path) -> list[Download]:
    """Sections of the Mouse set below `folder`; specimen BM15 is the test set.

    Raises
    ------
    InputError
        If there is no section with a picture of its regions.
    """
    files = [path for path in _files(folder) if path.suffix.lower() in PICTURES]
    regions = {_key(path, folder): path for path in files if _is_labels(path, folder)}
    sections = {_key(path, folder): path for path in files if not _is_labels(path, folder)}
    _say_alone([path for key, path in (*sections.items(), *regions.items())
                if not (key in sections and key in regions)])
    found = []
    for key in sorted(sections.keys() & regions.keys()):
        specimen, stem = key
        name = stem if stem.upper().startswith(specimen) else f"{specimen}_{stem}"
        split = "test" if specimen == HELD_OUT else "train"
        found.append(Download(name, sections[key], regions[key], split, specimen))
    return _checked(found, folder, "sections with a picture of their regions, of the same name "
                    "in a folder called regions or with _regions at its end")


def find_kpis(folder: Path) -> list[Download]:
    """Whole slides of the KPIS set below `folder`, in the challenge's own split.

    Raises
    ------
    InputError
        If there is no slide with a mask, or one lies in no part of the split.
    """
    slides, masks = ({_slide(path): path for path in _files(folder) if _slide_kind(path) == kind}
                     for kind in ("wsi", "mask"))
    _say_alone([path for key, path in slides.items() if key not in masks])
    found = []
    for key in sorted(slides.keys() & masks.keys()):
        path = slides[key]
        above = path.relative_to(folder).parts[:-1]
        split = _split(above)
        if split is None:
            raise InputError(
                f"{path} lies in no folder of training, validation or test; the challenge's "
                "split is by folders. Pass the folder that holds all three parts."
            )
        group = next((GROUPS[part.lower()] for part in above[::-1] if part.lower() in GROUPS), "")
        found.append(Download(key[-1], path, masks[key], split, group or above[-1]))
    return _checked(found, folder, "NAME_wsi.tiff with NAME_mask.tiff")


FINDERS: dict[str, Callable[[Path], list[Download]]] = {"mouse": find_mouse, "kpis": find_kpis}


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder. Pass the one that the download was unpacked to.")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _say_alone(paths: list[Path]) -> None:
    if paths:
        say(f"left out: {len(paths)} files without a partner, such as {paths[0]}")


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[^0-9a-z]+", text.lower()) if word]


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def _is_labels(path: Path, folder: Path) -> bool:
    words = _words(_stem(path))[-1:]
    for part in path.relative_to(folder).parts[:-1]:
        words += _words(part)
    return not set(words).isdisjoint(LABEL_WORDS)


def _key(path: Path, folder: Path) -> tuple[str, str]:
    """Specimen, and name without the word that says what a picture is."""
    ending = "|".join((*LABEL_WORDS, *IMAGE_WORDS))
    stem = re.sub(rf"[ _-]+({ending})$", "", _stem(path), flags=re.IGNORECASE)
    specimens = re.findall(r"BM\d+", "/".join(path.relative_to(folder).parts), re.IGNORECASE)
    if not specimens:
        raise InputError(
            f"{path} names no specimen; it decides the split. Put BM and its number, as in BM15, "
            "into the name of each section or of its folder."
        )
    return specimens[-1].upper(), stem


def _slide(path: Path) -> tuple[str, ...]:
    """What a slide and its mask have in common: their folder, and the name before the kind."""
    above = path.parent.parts[:-1] if path.parent.name in {"img", "mask"} else path.parent.parts
    return (*above, re.sub(r"_(wsi|mask)$", "", path.stem))


def _slide_kind(path: Path) -> str | None:
    match = re.search(r"_(wsi|mask)$", path.stem)
    return match[1] if match and path.suffix.lower() in PICTURES else None


def _split(parts: Iterable[str]) -> str | None:
    """Part of the split, by the innermost folder that names one."""
    for part in reversed(list(parts)):
        for begin, split in SPLITS:
            if any(word.startswith(begin) for word in _words(part)):
                return split
    return None


def _checked(found: list[Download], folder: Path, wanted: str) -> list[Download]:
    if not found:
        raise InputError(f"{folder} holds no {wanted}. Pass the folder of the download.")
    names = [(one.group, one.name) for one in found]
    twin = next((name for name in names if names.count(name) > 1), None)
    if twin is not None:
        raise InputError(
            f"{folder} holds {twin[1]} of group {twin[0]} twice. Keep one of them.")
    return found
