"""The demo asks a fair question and tells the truth about the answer."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import demo


@pytest.fixture(scope="module")
def scene() -> demo.Scene:
    return demo.make_scene(seed=3)


def test_part_of_the_demo_field_is_sharp_and_part_is_far_from_focus(scene: demo.Scene) -> None:
    """A field that is blurred everywhere does not show that the chain leaves sharp tissue alone."""
    assert 0.15 < (np.abs(scene.defocus_um) < 0.4).mean() < 0.6
    assert scene.defocus_um.max() == pytest.approx(3.2)


def test_the_blurred_part_lost_its_detail_and_the_sharp_part_kept_it(scene: demo.Scene) -> None:
    """If relief and blur were mismatched, the focus map would be judged against a wrong answer."""
    error = np.abs(scene.blurred.astype(float) - scene.truth).mean(axis=2)
    assert error[scene.defocus_um > 2.4].mean() > 2 * error[scene.defocus_um < 0.2].mean()


def test_the_enlarged_part_lies_inside_and_is_half_way_out_of_focus(scene: demo.Scene) -> None:
    """The best or the worst part would flatter or slander the result."""
    row, col, side = demo.typical_part(scene.defocus_um, scene.truth, 128)
    part = scene.defocus_um[row : row + side, col : col + side]
    assert part.shape == (128, 128)
    assert abs(part.mean() - np.median(scene.defocus_um)) < 0.4


def test_fidelity_knows_a_constant_error() -> None:
    """An error of 51 of 255 is 0.2 of the range: 20 log10(5) = 13.98 dB. A wrong data range shifts every figure."""
    truth = np.full((32, 32, 3), 100, dtype=np.uint8)
    assert demo.fidelity(truth + np.uint8(51), truth)["psnr"] == pytest.approx(13.979, abs=1e-3)
    assert demo.fidelity(truth + np.uint8(1), truth)["ssim"] > 0.99


def test_the_demo_writes_what_it_promises(
    scene: demo.Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """result.json is read by programs, and the figures in it must be those of the written pictures."""
    seconds = {"prompts": 0.1, "p_former": 0.2, "p_diffusion": 0.3, "command": 9.0}
    half = ((scene.blurred.astype(float) + scene.truth) / 2).astype(np.uint8)
    answer = demo.Answer(scene.blurred, half, scene.defocus_um, seconds)
    monkeypatch.setattr(demo, "make_scene", lambda seed: scene)
    monkeypatch.setattr(demo, "restore", lambda blurred: answer)
    assert demo.main(["--output", str(tmp_path)]) == 0
    names = {"input.png", "truth.png", "coarse.png", "restored.png", "focus.png", "comparison.png", "result.json",
             "report.html"}
    assert {path.name for path in tmp_path.iterdir()} == names
    result = json.loads((tmp_path / "result.json").read_text())
    written = np.asarray(Image.open(tmp_path / "coarse.png"))
    assert result["coarse"] == demo.fidelity(written, scene.truth)
    assert set(seconds) < set(result["seconds"])


def test_a_command_that_fails_ends_in_its_own_words(
    scene: demo.Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A newcomer whose first command fails needs the reason, and no half report."""
    monkeypatch.setattr(demo, "make_scene", lambda seed: scene)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho the weights are missing >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(demo.sys, "executable", str(python))
    output = tmp_path / "demo"
    assert demo.main(["--output", str(output)]) == 1
    assert capsys.readouterr().err.endswith("it ended with 3:\nthe weights are missing\n")
    assert not list(output.iterdir())
