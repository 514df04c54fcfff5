"""scripts/train_compact.py: all stages in order, and their weights as one file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from bundle.data.phantom import tissue_phantom
from bundle.loading import CONFIG, WEIGHTS, load_tile_restorer
from bundle.p_former.bands import BandGains
from bundle.weights import save_whole

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("encoder", "defocus", "prompt", "p_former", "p_diffusion")  # the overlays share two of these options


def fields(folder: Path) -> Path:
    folder.mkdir()
    entries = []
    for number, split in enumerate(("train", "train", "val")):
        pixels = tissue_phantom(320, 352, torch.Generator().manual_seed(number)) * 255
        Image.fromarray(pixels.byte().permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
        entries.append({"file": f"{number}.png", "split": split, "slide": f"s{number}", "mpp": 0.25})
    (folder / "index.json").write_text(json.dumps(entries))
    return folder


def test_each_half_of_a_stage_goes_on_from_the_other_and_is_what_later_stages_stand_on(
        script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Behind the first half a later stage would run without a word, and learn on prompts or images of other weights."""
    called: dict[str, list[str]] = {}
    for stage in script.STAGES:
        monkeypatch.setattr(script.subprocess, "run", lambda command, stage=stage, **options: (
            called.update({stage: command}) or subprocess.CompletedProcess(command, 0)))
        script.train(stage, tmp_path, tmp_path, [])
    for stage, first, frozen in (("spectrum", "defocus", "--estimator_weights"),
                                 ("tiles", "p_former", "--p_former_weights")):  # fmt: skip
        files = next(word for word in called[stage] if word.startswith("["))
        assert files == str([f"configs/train_{first}.json", "configs/compact.json", f"configs/{stage}.json"])
        overlay = json.loads((ROOT / "configs" / f"{stage}.json").read_text(encoding="utf-8"))
        assert overlay["start_weights"] == f"$@runs_dir + '/{first}/network.pt'"
        place = called["p_diffusion"].index(frozen)
        assert called["p_diffusion"][place + 1] == str(tmp_path / stage / "network.pt")


def test_the_p_former_ends_with_patches_as_large_as_the_tiles_that_it_restores() -> None:
    """Its attention and gates pool over what they see: at another size they are not what was trained."""
    tiles, inference = (json.loads((ROOT / "configs" / f"{name}.json").read_text(encoding="utf-8"))
                        for name in ("tiles", "inference"))  # fmt: skip
    assert tiles["patch_px"] == inference["tile_px"]


def test_p_diffusion_learns_from_what_the_p_former_before_it_ended_with(script: ModuleType, tmp_path: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind other cameras the coarse images would have other errors than those it is there to mend."""
    tiles, texture = (json.loads((ROOT / "configs" / f"{name}.json").read_text(encoding="utf-8"))
                      for name in ("tiles", "texture"))  # fmt: skip
    draws = {name: value for name, value in tiles.items() if name.endswith("_share")}
    assert draws == {name: value for name, value in texture.items() if name != "_desc_"} and len(draws) == 7
    commands: list[list[str]] = []
    monkeypatch.setattr(script.subprocess, "run", lambda command, **options: (
        commands.append(command) or subprocess.CompletedProcess(command, 0)))
    script.train("p_diffusion", tmp_path, tmp_path, [])
    assert str(["configs/train_p_diffusion.json", "configs/compact.json", "configs/texture.json"]) in commands[0]


def test_the_reader_of_oversampling_is_trained_at_the_size_that_is_restored_with() -> None:
    """Weights of another size would not load, after an hour of simulating."""
    sampling, inference = (json.loads((ROOT / "configs" / f"{name}.json").read_text(encoding="utf-8"))
                           for name in ("sampling", "inference"))  # fmt: skip
    for name in ("sampling_hidden", "sampling_frequencies"):
        assert sampling[name] == inference[name]


def test_band_gains_are_trained_behind_the_last_p_former_and_stand_in_the_weights(
        script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """P-diffusion must learn behind the gains it will stand behind, and nothing that was trained may be left out."""
    bands = BandGains(128, hidden=script.gain_hidden())
    torch.nn.init.normal_(bands.reader.last.weight)
    parts = {"bands": bands} | {stage: load_tile_restorer().get_submodule(place) for stage, (place, _) in
                                script.PLACES.items()}  # fmt: skip
    for stage, part in parts.items():
        prefix = script.PLACES.get(stage, ("", ""))[1]
        state = {prefix + name: value for name, value in part.state_dict().items()}
        save_whole(state, tmp_path / "runs" / stage / "network.pt")
    commands: list[list[str]] = []
    monkeypatch.setattr(script.subprocess, "run", lambda command, **options: (
        commands.append(command) or subprocess.CompletedProcess(command, 0)))
    monkeypatch.setattr(sys, "argv", ["train_compact.py", "--data", str(tmp_path), "--runs", str(tmp_path / "runs"),
                                      "--target", str(tmp_path / "model.pt"), "--bands"])  # fmt: skip
    assert script.main() == 0
    files = [next(word for word in command if word.startswith("[")) for command in commands]
    assert "bands.json" in files[-2] and "tiles.json" in files[-3] and "p_diffusion" in files[-1]
    overlay = json.loads((ROOT / "configs" / "bands.json").read_text(encoding="utf-8"))
    assert overlay["start_weights"] == "$@runs_dir + '/tiles/network.pt'"
    place = commands[-1].index("--band_weights")
    assert commands[-1][place + 1] == str(tmp_path / "runs" / "bands" / "network.pt")
    assert commands[-1][commands[-1].index("--gain_hidden") + 1] == str(overlay["gain_hidden"])
    assert not any("--band_weights" in command for command in commands[:-1])
    made = torch.load(tmp_path / "model.pt", weights_only=True)
    assert torch.equal(made["bands.reader.last.weight"], bands.reader.last.weight.half())
    assert {name.split(".")[0] for name in made} == {"prompter", "p_former", "bands", "denoiser", "sampling"}


def test_the_shipped_weights_are_stored_as_training_them_again_would(script: ModuleType) -> None:
    """Rounded once more, or more of them, they would not be the network that was measured."""
    shipped = torch.load(WEIGHTS, weights_only=True)
    coarse = {name for name, value in shipped.items() if value.dtype == torch.float8_e4m3fn}
    deep = ("encoders.2", "encoders.3", "decoders.2", "ups.1", "ups.2")
    assert {".".join(name.split(".")[:3]) for name in coarse} == {f"p_former.{part}" for part in deep}
    for name, value in load_tile_restorer().state_dict().items():
        kept = script.stored(name, value)
        assert kept.dtype == shipped[name].dtype and torch.equal(kept.to(value.dtype), value), name


def test_what_is_stored_is_what_was_trained_but_for_its_last_bits(script: ModuleType) -> None:
    """All numbers of the network but the two deepest levels' kernels must keep eleven bits, and those their four."""
    kernel = torch.randn(128, 128, generator=torch.Generator().manual_seed(0)) * 0.04
    for name, bits in (("p_former.encoders.3.0.attn.qkv.weight", 4), ("p_former.encoders.2.0.attn.qkv.weight", 4),
                       ("p_former.decoders.2.0.attn.qkv.weight", 4), ("p_former.encoders.1.0.attn.qkv.weight", 11),
                       ("denoiser.bottom.weight", 11)):  # fmt: skip
        error = (script.stored(name, kernel).float() - kernel).abs()
        assert bool((error <= kernel.abs() * 2.0**-bits + 2.0**-10).all()) and error.any()
        if bits == 11:
            assert torch.equal(script.stored(name, kernel), kernel.half())
    assert torch.equal(script.stored("p_former.encoders.3.0.norm1.weight", kernel[0]), kernel[0].half())
    assert torch.equal(script.stored("prompter.steps", torch.tensor(3)), torch.tensor(3))


@pytest.mark.slow
def test_one_command_trains_every_stage_and_makes_the_weights(script: ModuleType, tmp_path: Path) -> None:
    """Who repeats the training learns after hours whether the last step fits the first; here after two steps each."""
    target = tmp_path / "model.pt"
    short = [word for stage in STAGES for word in (f"--{stage}_epochs", "1", f"--{stage}_epoch_length", "1")]
    command = [sys.executable, "scripts/train_compact.py", "--data", str(fields(tmp_path / "fields")), "--runs",
               str(tmp_path / "runs"), "--target", str(target), "--", *short, "--val_patches", "2",
               "--defocus_batch_size", "2"]  # fmt: skip
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    network = load_tile_restorer(CONFIG, target)
    trained = {part: torch.load(tmp_path / "runs" / stage / "network.pt", weights_only=True)
               for stage, part in (("tiles", "p_former"), ("spectrum", "prompter.estimator"),
                                   ("sampling", "sampling"))}  # fmt: skip
    for part, state in trained.items():
        held = network.get_submodule(part).state_dict()
        assert all(torch.equal(held[name], script.stored(f"{part}.{name}", value).to(held[name]))
                   for name, value in state.items()), part  # fmt: skip
    made = [(path, path.stat().st_mtime_ns) for path in sorted((tmp_path / "runs").rglob("network.pt"))]
    assert len(made) == len(STAGES) + 3
    # The same line again: finished stages stay as they are.
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
    assert [(path, path.stat().st_mtime_ns) for path, _ in made] == made
