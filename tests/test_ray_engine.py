"""Slides by Ray: the bytes are those of one process, also when a worker is killed at its work. Skipped without Ray."""

import importlib.util
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from bundle.ray_engine import _shares, restore_all
from bundle.slide_job import Recipe, restore_image
from bundle.slides.files import Job
from bundle.wishes import Wishes

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: requirements-ray.txt")

NETWORK = '''
import os, time
from pathlib import Path
from typing import NamedTuple
import torch
from torch import nn


class Result(NamedTuple):
    restored: torch.Tensor
    defocus_um: torch.Tensor


class Slow(nn.Module):
    """Restored pixels are three quarters of their own; every tile takes a while and names its process."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(1))
        self.prompter = nn.Module()
        self.prompter.estimator = nn.Identity()
        self.stop_after, self.seed, self.skip_in_focus = "p_diffusion", 0, False

    @property
    def options(self):
        return {"stop_after": self.stop_after, "seed": self.seed, "skip_in_focus": self.skip_in_focus}

    def binning_of(self, tiles, camera=None):
        return 1

    def restore(self, image, location, binning=1):
        Path(__file__).with_name(f"pid-{os.getpid()}").touch()
        time.sleep(float(os.environ.get("FAKE_SECONDS_A_TILE", "0")))
        return Result(self.gain * image, image.mean(dim=(1, 2, 3)))
'''


def field(seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed).normal(0, 9, (300, 4000, 3))
    return np.clip(np.array([190, 90, 140]) + draw, 0, 255).astype(np.uint8)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    code = tmp_path / "code"
    code.mkdir()
    (code / "slow_network_of_a_test.py").write_text(NETWORK)
    (code / "inference.json").write_text('{"network_def": {"_target_": "slow_network_of_a_test.Slow"}}')
    torch.save({"gain": torch.tensor([0.75])}, code / "model.pt")
    monkeypatch.syspath_prepend(str(code))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(code), *sys.path]))
    return Recipe(code / "inference.json", code / "model.pt")


@needs_ray
def test_a_worker_that_is_killed_costs_nothing_but_time(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster takes machines away at any moment: the slides must come out as if nobody had."""
    slides = [tmp_path / f"{name}.tif" for name in "abc"]
    for seed, slide in enumerate(slides):
        tifffile.imwrite(slide, field(seed), photometric="rgb", resolution=(4e4, 4e4), resolutionunit=3)
    missing = Job(tmp_path / "d.tif", [tmp_path / "ray" / "d.tif"])
    wishes = Wishes(mode="full")
    for slide in slides:
        restore_image(recipe.engine(), Job(slide, [tmp_path / "local" / slide.name]), wishes)
    for mark in recipe.weights.parent.glob("pid-*"):
        mark.unlink()
    monkeypatch.setenv("RAY_worker_niceness", "0")  # on a busy machine workers would wait for minutes
    monkeypatch.setenv("FAKE_SECONDS_A_TILE", "0.05")
    killed: list[int] = []

    def kill_one() -> None:
        while not killed:
            time.sleep(0.05)
            # Once a block is finished and the next is under way: there is something to lose and something kept.
            if list((tmp_path / "ray").glob("*.partial/pixels/c/*/*/0")):
                killed.append(int(next(recipe.weights.parent.glob("pid-*")).name.removeprefix("pid-")))
                os.kill(killed[0], signal.SIGKILL)

    threading.Thread(target=kill_one, daemon=True).start()
    jobs = [*(Job(slide, [tmp_path / "ray" / slide.name]) for slide in slides), missing]
    outcomes = {outcome.job.image.name: outcome for outcome in restore_all(recipe, jobs, wishes, workers=2)}
    assert killed and len(list(recipe.weights.parent.glob("pid-*"))) == 3
    assert [outcomes[slide.name].report is not None for slide in slides] == [True] * 3
    assert outcomes["d.tif"].report is None and "is missing" in outcomes["d.tif"].complaints[0]
    for slide in slides:
        assert (tmp_path / "ray" / slide.name).read_bytes() == (tmp_path / "local" / slide.name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "ray").iterdir()) == ["a.tif", "b.tif", "c.tif"]


@pytest.mark.parametrize(
    ("cluster", "device", "workers", "jobs", "expected"),
    [
        ({"CPU": 16}, "cpu", None, 9, (4, {"num_cpus": 4})),
        ({"CPU": 2}, "cpu", None, 9, (1, {"num_cpus": 2})),
        ({"CPU": 16}, "cpu", 3, 9, (3, {"num_cpus": 5})),
        ({"CPU": 2}, "cpu", 5, 9, (2, {"num_cpus": 1})),
        ({"CPU": 16}, "cpu", None, 2, (2, {"num_cpus": 4})),
        ({"CPU": 64, "GPU": 8}, "cuda", None, 9, (8, {"num_cpus": 4, "num_gpus": 1})),
        ({"CPU": 8, "GPU": 8}, "cuda", None, 9, (8, {"num_cpus": 1, "num_gpus": 1})),
    ],
)
def test_the_cluster_holds_all_actors_at_once(
    cluster: dict[str, float], device: str, workers: int | None, jobs: int, expected: tuple[int, dict[str, float]]
) -> None:
    """An actor that finds no room is waited for without end and without a word."""
    assert _shares(cluster, device, workers, jobs) == expected


def test_a_cluster_without_gpus_is_told(recipe: Recipe) -> None:
    """Ray would wait for a GPU to come, for ever."""
    with pytest.raises(ValueError, match="needs a GPU in Ray's cluster"):
        _shares({"CPU": 8.0}, "cuda", None, 3)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is there")
def test_without_ray_the_sentence_says_what_to_install(recipe: Recipe) -> None:
    """Ray is optional: most users never have it."""
    with pytest.raises(ValueError, match=r"needs Ray: pip install -r requirements-ray\.txt"):
        next(restore_all(recipe, [], Wishes()))
