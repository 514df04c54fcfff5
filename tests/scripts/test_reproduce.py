"""scripts/reproduce.py: the rows of a table differ in what the table is about, and in nothing else."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from monai.bundle import ConfigParser

from bundle.data.phantom import write_phantom_fields
from bundle.prompts.defocus import DefocusEstimate

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reproduce", ROOT / "scripts" / "reproduce.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_has_a_config_and_a_line_in_the_page(script: ModuleType) -> None:
    """A row that is left out is a result that somebody did not like."""
    rows = {f"table{number}_{row}" for number, table in script.TABLES.items() for row in table.rows}
    assert {path.stem for path in (ROOT / "configs" / "ablations").glob("*.json")} == rows
    page = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| .* \| `configs/ablations/(\w+)\.json`", page, flags=re.MULTILINE)) == rows


def test_every_row_of_table_4_fits_its_gates(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """An overlay whose width does not fit its prompts fails after the rows before it, in the middle of the night."""
    monkeypatch.chdir(ROOT)
    seen = set()
    for row in script.TABLES[4].rows:
        parser = ConfigParser()
        parser.read_config([f"configs/{name}.json" for name in ("train_p_former", "smoke", f"ablations/table4_{row}")])
        network, prompter = (parser.get_parsed_content(name) for name in ("p_former", "prompter"))
        names = parser.config["train"]["prepare_batch"].get("gate_prompts", ["pathology"])
        image = torch.rand(1, 3, 32, 48)
        assert network(image, prompter.gate_prompt(image, names)).shape == image.shape
        seen.add((parser.config["gate_input"], *(names if parser.config["gate_input"] != "features" else ())))
    assert len(seen) == 9


def test_scores_are_those_of_the_paper(script: ModuleType) -> None:
    """Z-accuracy counts tiles within half a plane; contrast counts where it is defined."""
    estimate = DefocusEstimate(torch.zeros(3, 1), torch.tensor([1.0, -0.5, 0.0]), torch.tensor([0.5, 0.2, 0.9]))
    scores = script.estimate_scores(estimate, torch.tensor([[1.3, 0.4], [0.5, float("nan")], [0.39, 0.9]]))
    assert scores["Z-accuracy"].tolist() == [1, 0, 1]
    assert float(scores["MAE(contrast)"].nanmean()) == pytest.approx(0.05)
    assert float(scores["MAE(distance), µm"].mean()) == pytest.approx((0.3 + 1 + 0.39) / 3)


@pytest.mark.slow
def test_a_table_is_trained_scored_and_written(script: ModuleType, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line of docs/reproduce.md; what a row has not learned is left blank."""
    monkeypatch.chdir(ROOT)
    fields = Path(write_phantom_fields(tmp_path / "fields", train=1, val=1, test=1, size_px=112))
    results = script.reproduce(6, fields, tmp_path, 2, ["smoke"], 2)
    assert results == json.loads((tmp_path / "table_6.json").read_text())["rows"]
    assert results["contrast"]["Z-accuracy"] is None and results["distance"]["MAE(contrast)"] is None
    # Only the contrast weight differs: were the overlays without effect, these would be equal.
    assert results["distance"]["MAE(distance), µm"] != results["contrast + distance"]["MAE(distance), µm"]
    lines = (tmp_path / "table_6.md").read_text().splitlines()
    assert len(lines) == 5 and re.fullmatch(r"\| contrast \| [\d.]+ \|  \|  \|", lines[2])
