"""Whole evaluations with restorers whose figures are known: the table must say what happened."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bundle.evaluation.fields import list_fields, read_field
from bundle.evaluation.protocol import Evaluation
from bundle.evaluation.summary import average, mean_of
from bundle.optics.camera import smoothed

Build = Callable[..., Evaluation]
METRICS = ("psnr", "ssim", "ssim_uniform", "lpips")


def identity(image: Tensor) -> Tensor:
    return image


@pytest.fixture(autouse=True)
def _no_lpips_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lpips", None)


def test_a_restorer_that_does_nothing_scores_as_its_input(evaluate: Build, returns: Any) -> None:
    """Any other figure would mean that the field was tiled, clipped or rounded on its way."""
    summary = evaluate(returns(identity, identity)).run()
    for plane in [*summary["planes"], summary["mean"], summary["mean_defocused"], summary["mean_08_16"]]:
        assert plane["restored"] == plane["coarse"] == plane["input"]
    assert summary["colour_shift"]["restored"] == {"mean": 0, "max": 0}


def test_a_perfect_restorer_scores_as_perfect(evaluate: Build, returns: Any, fields: Path) -> None:
    """The truth that is scored against is the sharp field itself."""
    truth = {image.shape: image for image in map(read_field, list_fields(fields))}
    summary = evaluate(returns(lambda image: smoothed(image, 2.0), lambda image: truth[image.shape])).run()
    assert summary["mean"]["restored"]["psnr"] == pytest.approx(100)
    assert summary["mean"]["restored"]["ssim"] == pytest.approx(1, abs=1e-5)
    assert summary["mean"]["coarse"]["psnr"] < summary["mean"]["input"]["psnr"] < 60
    assert summary["colour_shift"]["restored"]["max"] > 0


def test_the_restorer_sees_the_defocused_plane_and_nothing_else(evaluate: Build, returns: Any, fields: Path) -> None:
    """A truth that leaks into restoring makes every figure worthless."""
    restorer = returns(identity, identity)
    evaluate(restorer).run()
    sharp = [read_field(field) for field in list_fields(fields)]
    assert len(restorer.seen) == 6
    assert not any(torch.equal(image, truth) for image in restorer.seen for truth in sharp)


def test_the_summary_has_the_promised_form(evaluate: Build, returns: Any, tmp_path: Path) -> None:
    """Scripts of others read these names."""
    evaluate(returns(identity, identity)).run()
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    assert [plane["defocus_um"] for plane in summary["planes"]] == [-1.6, 0, 0.8]
    methods = ["input", "unsharp", "richardson_lucy", "coarse", "restored"]
    for plane in summary["planes"]:
        assert list(plane) == ["defocus_um", *methods]
        assert all(tuple(plane[name]) == METRICS for name in methods)
    assert list(summary["mean"]) == methods
    assert {"fields", "command", "commit", "hardware", "weights_sha256"} <= set(summary)
    assert summary["weights_sha256"] == "a" * 64
    assert [field["slide"] for field in summary["fields"]] == ["slide-0", "slide-1"]


def test_means_are_over_fields_and_planes(evaluate: Build, returns: Any) -> None:
    """The row that is quoted is this one."""
    summary = evaluate(returns(identity, identity)).run()
    by_plane = [plane["input"]["psnr"] for plane in summary["planes"]]
    assert summary["mean"]["input"]["psnr"] == pytest.approx(sum(by_plane) / 3)
    assert summary["mean_defocused"]["input"]["psnr"] == pytest.approx((by_plane[0] + by_plane[2]) / 2)
    by_field = [field["mean"]["input"]["psnr"] for field in summary["fields"]]
    assert summary["mean"]["input"]["psnr"] == pytest.approx(sum(by_field) / 2)


def test_the_tables_hold_what_the_summary_holds(evaluate: Build, returns: Any, tmp_path: Path) -> None:
    """A README quotes the table, a script reads the summary: they must not differ."""
    summary = evaluate(returns(identity, lambda image: smoothed(image, 1.0))).run()
    folder = tmp_path / "evaluation"
    with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (3 + 3) * 5
    for row in rows:
        groups = {str(plane["defocus_um"]): plane for plane in summary["planes"]} | summary
        expected = groups[row["defocus_um"]][row["method"]]
        assert float(row["psnr"]) == pytest.approx(expected["psnr"], abs=1e-5)
        assert row["lpips"] == ""
    markdown = (folder / "table.md").read_text(encoding="utf-8")
    mean = summary["mean"]["restored"]
    line = f"| restored (chain) | {mean['psnr']:.2f} | {mean['ssim']:.4f} | {mean['ssim_uniform']:.4f} | – |"
    assert line in markdown
    assert "LPIPS (squeeze) was not measured" in markdown
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.rglob("*.tmp"))


def test_the_prompts_are_scored_on_tiles(evaluate: Build, returns: Any) -> None:
    """MAE, sign and Z-accuracy of a constant answer of +0.8 µm are known."""
    summary = evaluate(returns(identity, identity), relief_um=0.0).run()
    estimator = summary["defocus_estimator"]
    assert estimator["tiles"] == 6
    assert estimator["mae_um"] == pytest.approx((2.4 + 0.8 + 0.0) / 3, abs=1e-5)
    assert estimator["z_accuracy"] == pytest.approx(1 / 3)
    assert estimator["sign_accuracy"] == pytest.approx(1 / 2)
    assert summary["prompt_restorer"]["ratio"] == pytest.approx(1 / 4)


def test_a_killed_evaluation_goes_on_behind_the_last_finished_field(
    evaluate: Build, returns: Any, tmp_path: Path
) -> None:
    """Hours of restoring must not be lost, and the figures must be those of an unbroken run."""
    unbroken = evaluate(returns(identity, identity), output_dir=tmp_path / "unbroken").run()
    killed = returns(identity, lambda image: image if len(killed.seen) < 5 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(killed).run()
    assert not (tmp_path / "evaluation" / "summary.json").exists()
    resumed = returns(identity, identity)
    summary = evaluate(resumed).run()
    assert len(resumed.seen) == 3
    assert summary["planes"] == unbroken["planes"]


@pytest.mark.parametrize("change", ["weights", "seed", "planes", "pixels", "baseline"])
def test_finished_fields_of_other_weights_or_settings_are_scored_again(
    evaluate: Build, returns: Any, fields: Path, change: str
) -> None:
    """Figures of old weights under a new name are the worst kind of wrong."""
    evaluate(returns(identity, identity)).run()
    restorer = returns(identity, identity, "b" * 64 if change == "weights" else "a" * 64)
    options = {"seed": {"seed": 7}, "planes": {"positions_um": [0.8]}}.get(change, {})
    if change == "pixels":
        (fields / "test" / "field_0.png").write_bytes((fields / "train" / "field_2.png").read_bytes())
    evaluation = evaluate(restorer, **options)
    if change == "baseline":
        evaluation.settings["baselines"]["unsharp"]["amount"] = 0.7
    evaluation.run()
    assert len(restorer.seen) == {"planes": 2, "pixels": 3}.get(change, 6)


def test_a_chain_that_stops_after_the_p_former_has_no_restored_row(evaluate: Build, returns: Any) -> None:
    """A coarse figure under the name of the whole chain would be a false claim."""
    restorer = returns(identity, identity)
    del restorer.stages["restored"]
    assert list(evaluate(restorer).run()["mean"]) == ["input", "unsharp", "richardson_lucy", "coarse"]


def test_a_missing_figure_leaves_no_mean_of_the_rest() -> None:
    """A mean over the planes that happened to be measured is not comparable with the others."""
    assert mean_of([1.0, 2.0]) == 1.5
    assert mean_of([1.0, None]) is None
    assert average([]) is None


def test_no_planes_are_refused(evaluate: Build, returns: Any) -> None:
    """An empty list in an overlay must not end as a division by zero hours later."""
    with pytest.raises(ValueError, match="positions_um must name at least one plane"):
        evaluate(returns(identity, identity), positions_um=[])
