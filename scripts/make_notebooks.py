"""Write each example script as a notebook: python scripts/make_notebooks.py.

A script is divided by ``# %%`` (code) and ``# %% [markdown]``; its docstring is the first text.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NOTEBOOKS = EXAMPLES / "notebooks"
NAMES = ("own_image", "official_features", "custom_dataset", "cluster_prediction",
         "console_session")


def notebook_text(script: str) -> str:
    """The notebook of a script, as the text of its file."""
    docstring = ast.get_docstring(ast.parse(script)) or ""
    title, _, rest = docstring.partition("\n")
    cells = [_cell(0, "markdown", f"# {title.rstrip('.')}\n{rest}".rstrip())]
    for part in script.split("\n# %%")[1:]:
        head, _, body = part.partition("\n")
        text = body.strip("\n")
        if head.strip() == "[markdown]":
            lines = (line.removeprefix("#").removeprefix(" ") for line in text.splitlines())
            cells.append(_cell(len(cells), "markdown", "\n".join(lines)))
        else:
            cells.append(_cell(len(cells), "code", text))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4,
             "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _cell(number: int, kind: str, text: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {},
                            "source": text.splitlines(keepends=True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def main() -> None:
    """Write all notebooks."""
    NOTEBOOKS.mkdir(exist_ok=True)
    for name in NAMES:
        script = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
        (NOTEBOOKS / f"{name}.ipynb").write_text(notebook_text(script), encoding="utf-8")


if __name__ == "__main__":
    main()
