"""The doctor's remedies: each lack is named with the command that mends it."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from napari_muvit.__main__ import main
from napari_muvit.doors import doctor


def finding(subject: str) -> doctor.Finding:
    return next(found for found in doctor.examine() if found.subject == subject)


def lose_libraries(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def load(name: str, *rest: Any) -> object:
        if name in names:
            raise OSError(f"{name}: cannot open shared object file")
        return object()

    monkeypatch.setattr(doctor, "ctypes", SimpleNamespace(CDLL=load))
    monkeypatch.setattr(sys, "platform", "linux")


def test_a_cpu_build_beside_an_nvidia_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor, "_has_nvidia_driver", lambda: True)
    assert "CPU build" in finding("GPU").found
    assert finding("GPU").remedy.startswith("pip install --upgrade --force-reinstall torch")


def test_a_cuda_build_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "nvidia-smi" in finding("GPU").remedy


def test_a_missing_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name: None if name in doctor.BINDINGS else whole(name))
    assert finding("Qt").remedy == "pip install 'napari-muvit[gui]'"


def test_a_binding_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "PyQt6" or None)
    said = "ImportError: libEGL.so.1: cannot open shared object file"
    monkeypatch.setattr(doctor, "_try", lambda program: ("", said))
    assert "libEGL.so.1" in doctor._qt_binding().found
    assert doctor._qt_binding().remedy.startswith("sudo apt-get install -y libgl1")


def test_a_module_is_tried_in_a_process_of_its_own() -> None:
    assert doctor._try("import json; print(json.dumps(1))") == ("1", "")
    assert "ModuleNotFoundError" in doctor._try("import surely_not_there")[1]
    assert doctor._try("import sys; sys.exit(3)") == ("", "status 3")


def test_missing_opengl(monkeypatch: pytest.MonkeyPatch) -> None:
    lose_libraries(monkeypatch, "libGL.so.1")
    assert "libGL.so.1" in finding("OpenGL").found
    assert "libgl1 " in finding("OpenGL").remedy
    lose_libraries(monkeypatch)
    monkeypatch.delenv("DISPLAY", raising=False)
    assert finding("OpenGL").remedy == ""


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Linux screen with a binding that loads; what it can do is said by `_try`."""
    lose_libraries(monkeypatch)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":7")
    monkeypatch.setattr(doctor, "_bindings", lambda: ["PyQt6"])


@pytest.mark.usefixtures("display")
@pytest.mark.parametrize(
    ("tried", "subject", "found", "remedy"),
    [
        (("window\n4.5", ""), "OpenGL", "4.5", ""),
        (("window\n4.5", ""), "Display", "present", ""),
        (("window", "this display offers no OpenGL"), "OpenGL", "no OpenGL",
         "LIBGL_ALWAYS_SOFTWARE=1 napari"),
        (("", "could not connect to display :7"), "Display", ":7 cannot be opened", "ssh -X"),
    ],
)
def test_a_screen_is_tried(
    tried: tuple[str, str], subject: str, found: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_try", lambda program: tried)
    seen = {each.subject: each for each in doctor._screen()}[subject]
    assert found in seen.found
    assert remedy in seen.remedy
    assert bool(remedy) == bool(seen.remedy)


def test_no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    lose_libraries(monkeypatch)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert finding("Display").remedy.endswith("ssh -X")


def test_a_torch_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "torch", None)
    (found,) = doctor._devices()
    assert "does not load" in found.found
    assert found.remedy == "pip install --upgrade --force-reinstall torch"


def test_a_library_that_windows_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "PyQt6" or None)
    monkeypatch.setattr(doctor, "_try", lambda program: ("", ""))
    lose_libraries(monkeypatch, "libxcb-cursor.so.0")
    assert "libxcb-cursor.so.0" in doctor._qt_binding().found
    assert "libxcb-cursor0" in doctor._qt_binding().remedy


def test_missing_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    assert finding("Codecs").remedy == "pip install imagecodecs"
    lacking = SimpleNamespace(available=False)
    monkeypatch.setitem(sys.modules, "imagecodecs",
                        SimpleNamespace(JPEG8=lacking, LZW=lacking, JPEG2K=lacking))
    assert finding("Codecs").remedy == "pip install --upgrade imagecodecs"


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("surely-not-there",))
    assert finding("surely-not-there").remedy == "pip install 'napari-muvit'"


def test_remedies_are_printed_below_what_they_mend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: iter([doctor.Finding("Qt", "none", "do it")]))
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines() == ["! Qt             none",
                                                    f"  {'':<14} -> do it"]
