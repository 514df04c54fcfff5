"""configs/evaluate.json runs as a bundle, and evaluates the network that configs/inference.json restores with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, run
from PIL import Image

from bundle.conventions import to_uint8
from bundle.optics.camera import smoothed

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
NETWORK = ("network_def", "prompter", "estimator", "encoder", "restorer", "p_former", "denoiser", "diffusion_inferer")


def config(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / name).read_text(encoding="utf-8"))


def resolved(parts: dict[str, Any], value: object) -> object:
    """A definition with every @name of a number or a part in it replaced by what it stands for."""
    if isinstance(value, str) and value.startswith("@"):
        return resolved(parts, parts[value[1:]])
    if isinstance(value, dict):
        return {key: resolved(parts, inner) for key, inner in value.items()}
    return value


def test_the_network_is_that_of_inference() -> None:
    """A table about another network than the one that restores would be a false claim."""
    evaluate, inference = config("evaluate.json"), config("inference.json")
    assert resolved(evaluate, evaluate["network_def"]) == resolved(inference, inference["network_def"])
    for name in ("estimator_widths", "encoder_width", "tile_px", "overlap_px"):
        assert evaluate[name] == inference.get(name, evaluate[name])


def test_every_number_of_the_network_has_a_name_at_the_top() -> None:
    """A person tunes numbers there, and an overlay reaches them by that name."""
    parts = config("evaluate.json")
    numbers = [value for name in NETWORK for value in parts[name].values() if isinstance(value, int | float | list)]
    assert not numbers


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A field, random weights of the real network, and the bundle's root as the working directory."""
    monkeypatch.chdir(CONFIGS.parent)
    monkeypatch.setitem(__import__("sys").modules, "lpips", None)
    torch.manual_seed(0)
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "evaluate.json"))
    torch.save(parser.get_parsed_content("network_def").state_dict(), tmp_path / "model.pt")
    sharp = ((smoothed(torch.rand(3, 80, 96), 1.2) - 0.5) * 2.5 + 0.6).clamp(0, 1)
    (tmp_path / "fields").mkdir()
    Image.fromarray(to_uint8(sharp).permute(1, 2, 0).numpy()).save(tmp_path / "fields" / "a.png")
    return tmp_path


def test_the_config_evaluates_a_folder_of_images(folder: Path) -> None:
    """`make evaluate` is this call."""
    run(
        "evaluating",
        config_file="configs/evaluate.json",
        fields=str(folder / "fields"),
        output_dir=str(folder / "evaluation"),
        weights=str(folder / "model.pt"),
        positions_um=[0.0, 1.6],
        crop_px=64,
        unsharp_amount=0.0,
        device="$torch.device('cpu')",
    )
    summary = json.loads((folder / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    assert [plane["defocus_um"] for plane in summary["planes"]] == [0, 1.6]
    for method in ("richardson_lucy", "coarse", "restored"):
        assert summary["mean"][method]["psnr"] > 0
    # An overlay's number reaches its part: a mask of strength 0 is the input.
    assert summary["mean"]["unsharp"] == summary["mean"]["input"]
    assert summary["settings"]["baselines"]["unsharp"] == {"sigma_px": 2.0, "amount": 0.0}
    assert summary["prompt_restorer"]["ratio"] > 0
    assert summary["defocus_estimator"]["tiles"] == 2
