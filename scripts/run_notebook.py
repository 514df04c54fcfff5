"""Execute a notebook in place: every code cell in order, its printed lines and its figures kept as its outputs.

    python scripts/run_notebook.py docs/restore.ipynb            # seconds

Reads and writes one .ipynb (nbformat 4). No Jupyter is needed: cells are plain Python, figures are matplotlib's. What
a run writes depends on the notebook and the weights alone, so that a diff shows a change of theirs and nothing else.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

FIGURE_DPI = 72


def run_cells(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with fresh outputs; all code cells share one namespace.

    Raises:
        RuntimeError: a cell fails; names the cell and the error.
    """
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plt.close("all")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells, count = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            cells.append(cell)
            continue
        count += 1
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile("".join(cell["source"]), f"cell {count}", "exec"), namespace)
        except Exception as error:  # a cell may raise anything
            raise RuntimeError(f"every cell must run, cell {count} ends in {type(error).__name__}: {error}.") from error
        outputs: list[dict[str, Any]] = []
        if printed.getvalue():
            lines = printed.getvalue().splitlines(keepends=True)
            outputs.append({"name": "stdout", "output_type": "stream", "text": lines})
        outputs += [_as_output(plt.figure(number)) for number in plt.get_fignums()]
        plt.close("all")
        cells.append({**cell, "execution_count": count, "outputs": outputs})
    return {**notebook, "cells": cells}


def _as_output(figure: Any) -> dict[str, Any]:
    file = io.BytesIO()
    # Without the version of matplotlib, which would change the file with every upgrade.
    figure.savefig(file, format="png", dpi=FIGURE_DPI, metadata={"Software": None})
    picture = base64.b64encode(file.getvalue()).decode()
    return {"data": {"image/png": picture}, "metadata": {}, "output_type": "display_data"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Execute one notebook; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    path: Path = parser.parse_args(arguments).notebook
    try:
        executed = run_cells(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RuntimeError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 1
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(executed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
    print(f"{path}: {sum(cell['cell_type'] == 'code' for cell in executed['cells'])} cells ran")
    return 0


if __name__ == "__main__":
    sys.exit(main())
