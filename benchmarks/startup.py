"""How long until something is there: the import, each --help, the first widget in napari.

Each in fresh processes, the best of several. Needs a display:
``xvfb-run -a -s "-screen 0 1280x800x24" python benchmarks/startup.py``.
"""

from __future__ import annotations

import subprocess
import sys
import time

REPEATS = 5
IMPORT = """
import time
began = time.perf_counter()
import napari_muvit
print(time.perf_counter() - began)
"""
WIDGET = """
import sys, time
import napari
from qtpy.QtWidgets import QApplication
viewer = napari.Viewer(show=True, show_welcome_screen=False)
for _ in range(20):
    QApplication.processEvents()
    time.sleep(0.02)
began = time.perf_counter()
viewer.window.add_plugin_dock_widget("napari-muvit", sys.argv[1])
QApplication.processEvents()
print(time.perf_counter() - began, "torch" in sys.modules)
viewer.close()
"""
HELPS = (
    ("napari_muvit", "--help"), ("napari_muvit", "predict", "--help"),
    ("napari_muvit", "doctor", "--help"), ("napari_muvit.train", "pretrain", "--help"),
    ("napari_muvit.train", "finetune", "--help"),
)
WIDGETS = ("Crops", "Pretrain", "Annotate", "Fine-tune", "Predict", "Features", "Runs")


def run(*arguments: str) -> str:
    """What a fresh Python prints."""
    ran = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    return ran.stdout.strip()


def seconds(*arguments: str) -> float:
    """The shortest wall time of a fresh Python, which starts in it too."""
    found = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run("-m", *arguments)
        found.append(time.perf_counter() - began)
    return min(found)


def main() -> None:
    print("| what | seconds | torch loaded |")
    print("| --- | --- | --- |")
    imported = min(float(run("-c", IMPORT)) for _ in range(REPEATS))
    print(f"| `import napari_muvit` | {imported:.3f} | |")
    for arguments in HELPS:
        print(f"| `python -m {' '.join(arguments)}` | {seconds(*arguments):.2f} | |")
    for name in WIDGETS:
        lines = [run("-c", WIDGET, f"MuViT: {name}").splitlines()[-1].split() for _ in range(3)]
        shortest = min(float(text) for text, _ in lines)
        loaded = "yes" if any(flag == "True" for _, flag in lines) else "no"
        print(f"| first widget, {name} | {shortest:.2f} | {loaded} |")


if __name__ == "__main__":
    main()
