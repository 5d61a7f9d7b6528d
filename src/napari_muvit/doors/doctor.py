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
OPENGL_TRIAL = """
from qtpy.QtGui import QGuiApplication, QOffscreenSurface, QOpenGLContext
app = QGuiApplication([])
print("window", flush=True)
surface, context = QOffscreenSurface(), QOpenGLContext()
surface.create()
if not (context.create() and context.makeCurrent(surface)):
    raise SystemExit("this display offers no OpenGL")
print("{}.{}".format(*context.format().version()))
"""
"""Program that opens the display, says so, makes an OpenGL context and prints its version."""
CUDA_TORCH = (
    "pip install --upgrade --force-reinstall torch" if sys.platform == "linux" else
    "pip install --upgrade --force-reinstall torch --index-url URL, with the URL that "
    "https://pytorch.org/get-started names for CUDA"
)


NO_OPENGL = (
    "on this computer's own screen, update the graphics driver; over a network, use a remote "
    "desktop with OpenGL (VirtualGL), or draw in software: LIBGL_ALWAYS_SOFTWARE=1 napari"
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
    yield from _screen()


def _package(name: str) -> Finding:
    try:
        return Finding(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        extra = "[gui]" if name == "napari" else ""
        return Finding(name, "not installed", f"pip install 'napari-muvit{extra}'")


def _devices() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("PyTorch", f"does not load: {error}",
                      "pip install --upgrade --force-reinstall torch")
        return
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


def _bindings() -> list[str]:
    return [name for name in BINDINGS if importlib.util.find_spec(name) is not None]


def _qt_binding() -> Finding:
    found = _bindings()
    if not found:
        return Finding("Qt", "no binding; the viewer cannot start, everything headless can",
                       "pip install 'napari-muvit[gui]'")
    _, error = _try(f"import {found[0]}.QtWidgets")
    if error:
        return Finding("Qt", f"{found[0]} does not load: {error}", DEBIAN_PACKAGES)
    missing = _missing_libraries(QT_LIBRARIES)
    if missing:
        return Finding("Qt", f"{found[0]}, but its windows need {', '.join(missing)}",
                       DEBIAN_PACKAGES)
    return Finding("Qt", ", ".join(found))


def _try(program: str) -> tuple[str, str]:
    """What a program prints in a process of its own, and why it failed; empty where it did not."""
    try:
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                             check=False, timeout=60)
    except subprocess.TimeoutExpired:
        return "", "no answer within a minute"
    said = ran.stderr.strip().splitlines()
    error = "" if ran.returncode == 0 else (said[-1] if said else f"status {ran.returncode}")
    return ran.stdout.strip(), error


def _screen() -> Iterator[Finding]:
    """OpenGL, then the display that it needs."""
    missing = _missing_libraries(GL_LIBRARIES)
    if missing:
        yield Finding("OpenGL", f"{', '.join(missing)} not found; the viewer's canvas stays "
                      "empty, everything headless works", DEBIAN_PACKAGES)
    is_triable = not missing and bool(_bindings()) and importlib.util.find_spec("qtpy") is not None
    display = next((os.environ[name] for name in ("WAYLAND_DISPLAY", "DISPLAY")
                    if os.environ.get(name)), "")
    if is_triable and (display or sys.platform != "linux"):
        yield from _try_screen(display or "the screen")
        return
    if not missing:
        yield Finding("OpenGL", "its libraries are present")
    if sys.platform == "linux" and not display:
        yield Finding("Display", "none; the viewer cannot open here, everything headless can",
                      "for the viewer, log in with: ssh -X")


def _try_screen(display: str) -> Iterator[Finding]:
    said, error = _try(OPENGL_TRIAL)
    if not said.startswith("window"):
        yield Finding("Display", f"{display} cannot be opened; the viewer cannot start",
                      "log out and in again, over a network with: ssh -X")
        return
    if error:
        yield Finding("OpenGL", f"does not start: {error}; the viewer's canvas stays empty, "
                      "everything headless works", NO_OPENGL)
    else:
        yield Finding("OpenGL", said.split()[-1])
    yield Finding("Display", "present")


def _missing_libraries(names: Sequence[str]) -> list[str]:
    """Those shared libraries that the system lacks; elsewhere than on Linux it brings its own."""
    missing = []
    for name in names if sys.platform == "linux" else ():
        try:
            ctypes.CDLL(name)
        except OSError:
            missing.append(name)
    return missing
