"""The notebook in docs/ runs, and holds what it printed."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import run_notebook

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "restore.ipynb"


def notebook(*sources: str) -> dict[str, Any]:
    cells = [{"cell_type": "code", "id": str(k), "execution_count": None, "metadata": {}, "outputs": [],
              "source": source.splitlines(keepends=True)} for k, source in enumerate(sources)]
    return {"cells": [{"cell_type": "markdown", "source": ["# Text"]}, *cells], "nbformat": 4, "nbformat_minor": 5}


def kinds(content: dict[str, Any]) -> list[list[str]]:
    """What kinds of output each code cell has."""
    return [[output["output_type"] for output in cell["outputs"]]
            for cell in content["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_of_the_documents_runs_and_holds_its_outputs() -> None:
    """A notebook that fails in its third cell is a newcomer's first impression."""
    kept = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    fresh = run_notebook.run_cells(kept)
    assert kinds(fresh) == kinds(kept)
    assert sum(cell.count("display_data") for cell in kinds(kept)) == 2
    counts = [cell["execution_count"] for cell in kept["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_the_notebook_of_the_documents_is_small_and_names_no_machine() -> None:
    """A clone should not take minutes, and an output with a path tells strangers about its author."""
    assert NOTEBOOK.stat().st_size < 1.5e6
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    texts = [*content["cells"][0]["source"]]
    for cell in content["cells"]:
        texts += [line for output in cell.get("outputs", []) for line in output.get("text", [])] + cell["source"]
    assert not [line for line in texts if "site-packages" in line or str(Path.home()) in line]


def test_cells_share_their_names_and_keep_what_they_print_and_draw() -> None:
    """A runner that drops outputs would leave an empty notebook green."""
    fresh = run_notebook.run_cells(notebook("x = 3", "print(x + 1)\nfrom matplotlib import pyplot\npyplot.figure()"))
    assert kinds(fresh) == [[], ["stream", "display_data"]]
    assert fresh["cells"][2]["outputs"][0]["text"] == ["4\n"]


def test_a_cell_that_fails_is_named_and_the_file_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of a run must not replace a whole one."""
    path = tmp_path / "broken.ipynb"
    path.write_text(json.dumps(notebook("x = 1", "x / 0")))
    before = path.read_text()
    assert run_notebook.main([str(path)]) == 1
    assert "cell 2 ends in ZeroDivisionError" in capsys.readouterr().err
    assert path.read_text() == before and len(list(tmp_path.iterdir())) == 1
