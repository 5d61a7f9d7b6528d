"""`napari-muvit doctor`: what is installed, what is usable, and the command that mends it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from napari_muvit import __version__
from napari_muvit.doors.options import Parser

PACKAGES = ("torch", "zarr", "ome-zarr", "dask", "tifffile", "imagecodecs", "napari")
BINDINGS = ("PyQt6", "PySide6", "PyQt5", "PySide2")
GL_LIBRARIES = ("libGL.so.1", "libEGL.so.1")
QT_LIBRARIES = ("libxkbcommon-x11.so.0", "libxcb-cursor.so.0", "libxcb-icccm.so.4",
                "libxcb-keysyms.so.1")
DEBIAN_PACKAGES = (
    "sudo apt-get install -y libgl1 libegl1 libgl1-mesa-dri libxkbcommon-x11-0 libdbus-1-3 "
    "libxcb-cursor0 libxcb-icccm4 libxcb-image0 libxcb-keysyms1 libxcb-randr0 "
    "libxcb-render-util0 libxcb-shape0 (Debian, Ubuntu; other systems have the same under other "
    "names)"
)
CUDA_TORCH = (
    "pip install --upgrade --force-reinstall torch" if sys.platform == "linux" else
    "pip install --upgrade --force-reinstall torch --index-url URL, with the URL that "
    "https://pytorch.org/get-started names for CUDA"
)


@dataclass(frozen=True)
class Finding:
    """One line of the examination; `remedy` is a command or a sentence, empty where all is well."""

    subject: str
    found: str
    remedy: str = ""


def doctor(args: Sequence[str]) -> int:
    """Say what is installed and usable here, and the command that mends what is not."""
    parser = Parser(prog="napari-muvit doctor", description=doctor.__doc__)
    parser.add_argument("image", nargs="?", metavar="IMAGE", help="Also measure how long this "
                        "image would take with each preset (some minutes).")
    parser.add_argument("--device", default="auto", metavar="X", help="Device to measure.")
    given = parser.parse_strictly(args)
    for finding in examine():
        mark = "!" if finding.remedy else " "
        sys.stdout.write(f"{mark} {finding.subject:<14} {finding.found}\n")
        if finding.remedy:
            sys.stdout.write(f"  {'':<14} -> {finding.remedy}\n")
    if given.image is not None:
        from napari_muvit.doors.plan import plan

        for line in plan(given.image, given.device):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    return 0


def examine() -> Iterator[Finding]:
    """All findings, in the order in which a user meets their subjects."""
    yield Finding("napari-muvit", __version__)
    yield Finding("Python", f"{platform.python_version()} on {platform.platform()}")
    yield Finding("Processor", f"{os.cpu_count()} cores")
    for name in PACKAGES:
        yield _package(name)
    yield from _devices()
    yield _codecs()
    yield _qt_binding()
    yield _opengl()
    yield _display()


def _package(name: str) -> Finding:
    try:
        return Finding(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        extra = "[gui]" if name == "napari" else ""
        return Finding(name, "not installed", f"pip install 'napari-muvit{extra}'")


def _devices() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    yield Finding("CPU threads", str(torch.get_num_threads()))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            yield Finding(f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    elif torch.version.cuda is None and _has_nvidia_driver():
        yield Finding("GPU", "an NVIDIA driver is here, but this torch is a CPU build", CUDA_TORCH)
    elif torch.version.cuda is not None:
        yield Finding("GPU", "torch is a CUDA build, but it sees no usable GPU",
                      "check the driver with: nvidia-smi")
    else:
        yield Finding("GPU", "none; everything runs on the CPU")
    if torch.backends.mps.is_available():
        yield Finding("mps", "Apple GPU")


def _has_nvidia_driver() -> bool:
    from shutil import which

    return which("nvidia-smi") is not None


def _codecs() -> Finding:
    try:
        import imagecodecs
    except ImportError as error:
        return Finding("Codecs", f"imagecodecs does not load: {error}", "pip install imagecodecs")
    wanted = ("JPEG8", "LZW", "JPEG2K")
    missing = [name for name in wanted if not getattr(imagecodecs, name).available]
    if missing:
        return Finding("Codecs", f"imagecodecs lacks {', '.join(missing)}",
                       "pip install --upgrade imagecodecs")
    return Finding("Codecs", "JPEG, LZW and JPEG 2000 slides can be read")


def _qt_binding() -> Finding:
    found = [name for name in BINDINGS if importlib.util.find_spec(name) is not None]
    if not found:
        return Finding("Qt", "no binding; the viewer cannot start, everything headless can",
                       "pip install 'napari-muvit[gui]'")
    error = _import_error(f"{found[0]}.QtWidgets")
    if error:
        return Finding("Qt", f"{found[0]} does not load: {error}", DEBIAN_PACKAGES)
    missing = _missing_libraries(QT_LIBRARIES)
    if missing:
        return Finding("Qt", f"{found[0]}, but its windows need {', '.join(missing)}",
                       DEBIAN_PACKAGES)
    return Finding("Qt", ", ".join(found))


def _import_error(module: str) -> str:
    """Why a module cannot be imported, tried in a process of its own; empty where it can."""
    ran = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True,
                         text=True, check=False)
    said = ran.stderr.strip().splitlines()
    return "" if ran.returncode == 0 else (said[-1] if said else f"status {ran.returncode}")


def _opengl() -> Finding:
    missing = _missing_libraries(GL_LIBRARIES)
    if missing:
        return Finding("OpenGL", f"{', '.join(missing)} not found; the viewer's canvas stays "
                       "empty, everything headless works", DEBIAN_PACKAGES)
    return Finding("OpenGL", "present")


def _missing_libraries(names: Sequence[str]) -> list[str]:
    """Those shared libraries that the system lacks; elsewhere than on Linux it brings its own."""
    missing = []
    for name in names if sys.platform == "linux" else ():
        try:
            ctypes.CDLL(name)
        except OSError:
            missing.append(name)
    return missing


def _display() -> Finding:
    if sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return Finding("Display", "present")
    return Finding("Display", "none; the viewer cannot open here, everything headless can")
