"""scripts/reproduce.py: the rows of a table differ in what the table is about, and in nothing else."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from bundle.data.phantom import write_phantom_fields
from bundle.evaluation import origin
from bundle.prompts.defocus import DefocusEstimate
from bundle.reproduction.rows import stage_workflow
from tests.data.dataset_files import write_dataset

ROOT = Path(__file__).resolve().parent.parent.parent


def test_every_row_has_a_config_and_a_line_in_the_page(script: ModuleType) -> None:
    """A row that is left out is a result that somebody did not like."""
    rows = {f"table{number}_{row}" for number, table in script.TABLES.items() for row in table.rows}
    rows |= {method.overlay for method in script.METHODS.values()} | {"table7"}
    assert {path.stem for path in (ROOT / "configs" / "ablations").glob("*.json")} == rows
    page = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| .* \| `configs/ablations/(\w+)\.json`", page, flags=re.MULTILINE)) == rows
    assert all(f"`{name}`" in page for name in script.METHODS)


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
        prompter.eval()  # as in training, where it is frozen
        assert network(image, prompter.gate_prompt(image, names)).shape == image.shape
        seen.add((parser.config["gate_input"], *(names if parser.config["gate_input"] != "features" else ())))
    assert len(seen) == 9


@pytest.mark.parametrize("stage", ["defocus", "p_former", "p_diffusion"])
def test_a_small_budget_has_a_whole_schedule(stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The compact preset warms up for 100 steps: a row of 60 would end before its learning rate had been reached."""
    monkeypatch.chdir(ROOT)
    config = stage_workflow(stage, None, tmp_path, tmp_path, 60, ["compact"]).parser.config
    key = config["train"]["lr_scheduler"]["warmup_steps"].removeprefix("@")
    assert config[key] == 6 and config[f"{stage}_epochs"] * config[f"{stage}_epoch_length"] == 60


def test_scores_are_those_of_the_paper(script: ModuleType) -> None:
    """Z-accuracy counts tiles within half a plane; contrast counts where it is defined."""
    estimate = DefocusEstimate(torch.zeros(3, 1), torch.tensor([1.0, -0.5, 0.0]), torch.tensor([0.5, 0.2, 0.9]))
    scores = script.estimate_scores(estimate, torch.tensor([[1.3, 0.4], [0.5, float("nan")], [0.39, 0.9]]))
    assert scores["Z-accuracy"].tolist() == [1, 0, 1]
    assert float(scores["MAE(contrast)"].nanmean()) == pytest.approx(0.05)
    assert float(scores["MAE(distance), µm"].mean()) == pytest.approx((0.3 + 1 + 0.39) / 3)


def typed(script: ModuleType, *arguments: str | Path) -> int:
    """The exit code of a command line."""
    try:
        script.run(script.parsed([str(one) for one in arguments]))
    except SystemExit as stop:
        return int(str(stop.code))
    return 0


@pytest.mark.slow
def test_a_table_is_trained_scored_and_written(script: ModuleType, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line of docs/reproduce.md; what a row has not learned is left blank."""
    monkeypatch.chdir(ROOT)
    fields = Path(write_phantom_fields(tmp_path / "fields", train=1, val=1, test=1, size_px=112))
    assert typed(script, "--table", "6", "--data", fields, "--steps", "2", "--overlays", "smoke", "--patches", "2",
                 "--patch-px", "32", "--weights", "none", "--runs", tmp_path) == 0
    record = json.loads((tmp_path / "table_6.json").read_text())
    results = record["rows"]
    assert (record["steps"], record["patch_px"], record["patches"], record["data"]) == (2, 32, 2, "fields")
    assert record["commit"] == origin.commit(ROOT) and "CPU" in record["hardware"]
    assert (tmp_path / "table_6_2_steps_32_px" / "both" / "defocus" / "network.pt").is_file()
    assert results["contrast"]["Z-accuracy"] is None and results["distance"]["MAE(contrast)"] is None
    # Only the contrast weight differs: were the overlays without effect, these would be equal.
    assert results["distance"]["MAE(distance), µm"] != results["contrast + distance"]["MAE(distance), µm"]
    lines = (tmp_path / "table_6.md").read_text().splitlines()
    assert len(lines) == 5 and re.fullmatch(r"\| contrast \| [\d.]+ \|  \|  \|", lines[2])


@pytest.mark.slow
def test_a_table_of_images_shows_what_its_rows_began_with(script: ModuleType, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that differ by a hundredth may all be worse than doing nothing: nobody sees it without the input's row."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(script.TABLES, 4, script.TABLES[4]._replace(rows={"f": "F", "pd": "P_D"}))
    fields = Path(write_phantom_fields(tmp_path / "fields", train=1, val=1, test=1, size_px=112))
    assert typed(script, "--table", "4", "--data", fields, "--steps", "1", "--overlays", "smoke", "--patches", "2",
                 "--weights", "none", "--runs", tmp_path) == 0
    rows = json.loads((tmp_path / "table_4.json").read_text())["rows"]
    assert list(rows) == ["input", "F", "P_D"]
    # One step of a network that adds to its input: close to it, and not it.
    assert 0 < abs(rows["F"]["PSNR, dB"] - rows["input"]["PSNR, dB"]) < 3


def test_a_method_is_compared_by_its_images_alone(script: ModuleType, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """The way for every method whose code or licence does not fit: planes out, images in, one row."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(sys.modules, "lpips", None)
    data = write_dataset(tmp_path / "dataset", slides={"A": "training", "B": "testing", "C": "testing"})
    line = ["--table", "1", "--data", data, "--positions-um", "-0.8", "0", "--crop-px", "64", "--runs",
            tmp_path / "runs"]
    assert typed(script, *line, "--write-inputs", tmp_path / "planes") == 0
    written = sorted(path.relative_to(tmp_path / "planes").as_posix() for path in (tmp_path / "planes").rglob("*.png"))
    assert written == [f"{slide}_1/plane_{plane}.png" for slide in "BC" for plane in ("00", "01")]
    assert typed(script, *line, "--restored", f"same={tmp_path / 'planes'}") == 0
    record = json.loads((tmp_path / "runs" / "table_1.json").read_text())
    assert record["rows"]["same"] == record["rows"]["input"]
    assert re.fullmatch(r"\d\d\.\d\d ± \d+\.\d\d", record["rows"]["same"]["PSNR, dB"])
    assert "| same |" in (tmp_path / "runs" / "table_1.md").read_text()


def test_methods_of_one_and_two_stages_are_trained_and_scored_on_whole_fields(
        script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cascade whose coarse stage were not the trained one would be another method."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(sys.modules, "lpips", None)
    data = write_dataset(tmp_path / "dataset", slides={"A": "training", "B": "validation", "C": "testing"})
    assert typed(script, "--table", "1", "--data", data, "--rows", "resfusion", "restormer_resshift", "--steps", "1",
                 "--overlays", "smoke", "--weights", "none", "--positions-um", "0.8", "--crop-px", "64",
                 "--runs", tmp_path / "runs") == 0
    rows = json.loads((tmp_path / "runs" / "table_1.json").read_text())["rows"]
    assert list(rows) == ["input", "Resfusion", "Restormer + ResShift"]
    place = tmp_path / "runs" / "table_1_1_steps"
    chain = torch.load(place / "restormer_resshift" / "chain.pt", weights_only=True)
    restormer = torch.load(place / "restormer" / "p_former" / "network.pt", weights_only=True)
    assert all(torch.equal(chain[f"p_former.{name}"], value) for name, value in restormer.items())
    assert not any("router" in name for name in restormer)  # Restormer has no gates
    alone = torch.load(place / "resfusion" / "chain.pt", weights_only=True)
    assert not any(name.startswith("p_former.") for name in alone)


@pytest.mark.slow
def test_encoders_are_compared_and_shown(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 7 with figures 5 and 6, for an encoder that is there."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(sys.modules, "lpips", None)
    data = write_dataset(tmp_path / "dataset", slides={"A": "training", "B": "validation", "C": "testing"})
    assert typed(script, "--table", "7", "--data", data, "--encoder", "compact", "--steps", "1", "--overlays", "smoke",
                 "--weights", "none", "--positions-um", "0.8", "--crop-px", "64", "--patches", "4",
                 "--runs", tmp_path / "runs") == 0
    assert list(json.loads((tmp_path / "runs" / "table_7.json").read_text())["rows"]) == ["input", "compact"]
    place = tmp_path / "runs" / "table_7_1_steps" / "compact"
    assert [line.split(",")[0] for line in (place / "mse.csv").read_text().splitlines()[1:]] == ["P_LP", "P_Res", "P_P"]
    assert (place / "t_sne.png").is_file()
    chain = torch.load(place / "p_diffusion_with_p_p" / "chain.pt", weights_only=True)
    restorer = torch.load(place / "p_diffusion_with_p_p" / "prompt" / "network.pt", weights_only=True)
    assert all(torch.equal(chain[f"prompter.restorer.{name}"], value) for name, value in restorer.items())


def write_labelled_tiles(place: Path, folders: tuple[str, ...], height: int, width: int) -> None:
    """Ten tiles of noise in each folder, and list.csv with their labels, 0 and 1 in turn."""
    random = np.random.default_rng(0)
    for folder in folders:
        (place / folder).mkdir()
        for number in range(10):
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / folder / f"t{number}.png")
    (place / "list.csv").write_text("name,label\n" + "".join(f"t{n}.png,{n % 2}\n" for n in range(10)))


@pytest.mark.slow
def test_tiles_are_classified_from_the_command_line(script: ModuleType, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 3 of two folders and a list, as they are published."""
    write_labelled_tiles(tmp_path, ("sharp", "restored"), 32, 40)
    assert typed(script, "--table", "3", "--labels", tmp_path / "list.csv", "--sharp", tmp_path / "sharp",
                 "--restored", f"MoP={tmp_path / 'restored'}", "--steps", "1", "--runs", tmp_path / "runs") == 0
    rows = json.loads((tmp_path / "runs" / "table_3.json").read_text())["rows"]
    assert list(rows) == ["sharp", "MoP"] and list(rows["MoP"]) == ["auc", "accuracy", "precision", "specificity"]


@pytest.mark.slow
def test_rows_of_table_1_restore_the_tiles_that_are_classified(script: ModuleType, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's rows are networks of one budget: shipped weights beside them would have had hours."""
    monkeypatch.chdir(ROOT)
    fields = Path(write_phantom_fields(tmp_path / "fields", train=1, val=1, test=1, size_px=112))
    write_labelled_tiles(tmp_path, ("sharp", "low"), 64, 64)
    line = ("--table", "3", "--labels", tmp_path / "list.csv", "--sharp", tmp_path / "sharp", "--low", tmp_path / "low",
            "--restored", f"low={tmp_path / 'low'}", "--steps", "1", "--data", fields, "--row-steps", "2", "--rows",
            "restormer", "restormer_resshift", "--overlays", "smoke", "--weights", "none", "--patch-px", "32",
            "--runs", tmp_path / "runs")
    assert typed(script, *line) == 0
    record = json.loads((tmp_path / "runs" / "table_3.json").read_text())
    assert list(record["rows"]) == ["sharp", "low", "Restormer", "Restormer + ResShift"] and record["row_steps"] == 2
    assert (tmp_path / "runs" / "table_1_2_steps_32_px" / "restormer" / "chain.pt").is_file()


@pytest.mark.parametrize(("line", "message"), [
    (("--table", "3", "--steps", "5", "--labels", "l", "--sharp", "s", "--rows", "mop"), "--rows of table 3"),
    (("--table", "4", "--data", "x"), "--steps must be at least 1 step, got 0"),
    (("--table", "1", "--steps", "5"), "--data must name the fields"),
    (("--table", "3", "--steps", "5"), "table 3 needs --labels CSV and --sharp FOLDER"),
])
def test_a_line_that_lacks_something_is_refused(script: ModuleType, line: tuple[str, ...], message: str,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    """A table that starts and fails after an hour costs the hour."""
    assert typed(script, *line) == 2
    assert message in capsys.readouterr().err


def test_what_is_wrong_with_the_data_is_one_sentence(script: ModuleType, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    """Not forty lines of a framework's traceback."""
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--table", "6", "--data", str(tmp_path / "absent"), "--steps",
                                      "1", "--overlays", "smoke", "--weights", "none", "--runs", str(tmp_path / "r")])
    monkeypatch.chdir(ROOT)
    assert script.main() == 1
    told = capsys.readouterr().err.strip().splitlines()
    assert told[-1].startswith("reproduce.py: a folder of sharp fields needs index.json, but")
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--table", "1", "--data", str(tmp_path), "--restored", "x"])
    assert script.main() == 1
    assert "every method must be given once as NAME=FOLDER, got x." in capsys.readouterr().err
