"""The benchmark of a slide: time goes to the stage that spent it, and the slide is what it says."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tifffile
from PIL import Image

from bundle.loading import CONFIG, WEIGHTS
from bundle.slide_job import Engine, restore_image
from bundle.slide_plan import SlidePlanner
from bundle.slide_restoration import SlideRestorer
from bundle.slides.files import Job
from bundle.slides.reader import open_image
from bundle.wishes import Wishes


class Clock:
    """Stands for the module `time`: work takes as long as it says."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.now / 2

    def thread_time(self) -> float:
        return self.now / 2


class Work:
    """Plans, and reads while it plans."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def read(self) -> None:
        self.clock.now += 5

    def plan(self) -> None:
        self.clock.now += 2
        self.read()
        self.clock.now += 1


class Heir(Work):
    """Inherits what is watched."""

    def again(self) -> None:
        self.read()


def test_each_second_goes_to_the_innermost_stage(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading that is counted as planning too makes shares that sum to more than the whole."""
    clock = Clock()
    monkeypatch.setattr(script, "time", clock)
    stages, work = script.Stages(lambda: None), Heir(clock)
    with stages.watching(("read", Work, "read"), ("plan", Heir, "plan")):
        work.plan()
        work.read()
        clock.now += 4
        stages.charge()
    assert stages.costs == {"read": (10, 5), "plan": (3, 1.5), "rest": (4, 2)}
    assert "plan" not in vars(Heir) and "plan" in vars(Work)
    work.plan()
    assert sum(cost.seconds for cost in stages.costs.values()) == 17


def test_work_beside_the_network_is_not_charged_to_it(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading ahead that counts as P-diffusion would hide what reading costs."""
    clock = Clock()
    monkeypatch.setattr(script, "time", clock)
    stages, work = script.Stages(lambda: None), Heir(clock)
    with stages.watching(("read", Work, "read"), ("read", Heir, "again")), ThreadPoolExecutor(1) as pool:
        clock.now += 3
        pool.submit(work.again).result()  # a reader in a reader
        clock.now += 1
        stages.charge()
    assert stages.costs == {"read": (5, 2.5), "rest": (9, 2)}  # 9 seconds passed, 2 of its own


def test_the_slide_has_its_tissue_in_the_middle_and_says_its_depth(script: ModuleType, tmp_path: Path) -> None:
    """A benchmark on a slide of another kind measures something else."""
    draw = np.random.default_rng(2).integers(60, 200, (70, 80, 3)).astype(np.uint8)
    sharp = Image.fromarray(draw).resize((640, 600), Image.Resampling.BICUBIC)
    sharp.save(tmp_path / "field.png")
    entry = {"file": "field.png", "split": "test", "slide": "a", "mpp": 0.25}
    (tmp_path / "index.json").write_text(json.dumps([entry]))
    path = script.make_slide(tmp_path / "out", tmp_path, 1024, 0.3, seed=1)
    with open_image(path) as reader:
        assert reader.shape == (1024, 1024) and reader.mpp == pytest.approx(0.25)
        pixels = reader.read(0, 0, 1024, 1024).astype(int)
    assert np.abs(pixels[:40, :40] - script.GLASS).max() <= 2
    assert (np.abs(pixels - script.GLASS).max(axis=2) > 20).mean() == pytest.approx(0.3, abs=0.02)
    depth_um = tifffile.imread(tmp_path / "out" / "depth_um.tif")
    assert depth_um.shape == (1024, 1024) and np.abs(depth_um).max() == pytest.approx(script.DEPTH_UM)
    # Where the relief is far from the stage, detail is gone.
    detail = np.abs(np.diff(pixels[..., 1], axis=1, append=0))
    rows, cols = np.mgrid[:1024, :1024] - 512
    inside = rows**2 + cols**2 < 280**2
    near, far = inside & (np.abs(depth_um) < 0.4), inside & (np.abs(depth_um) > 1.4)
    assert min(near.sum(), far.sum()) > 1000 and detail[near].mean() > 1.3 * detail[far].mean()


@pytest.mark.parametrize("binning", [None, 2])
def test_the_idle_network_restores_a_slide_as_a_network_does(script: ModuleType, tmp_path: Path, binning: int | None
                                                             ) -> None:  # fmt: skip
    """It lacked what a slide asks of a network since a while, and the benchmark ended before it began."""
    pixels = np.random.default_rng(3).integers(60, 200, (300, 340, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "in.tif", pixels, photometric="rgb", resolution=(4e4, 4e4), resolutionunit=3)
    idle = Engine(SlideRestorer(script.Unchanged()), SlidePlanner(), CONFIG, WEIGHTS)
    restore_image(idle, Job(tmp_path / "in.tif", [tmp_path / "out.tif"]), Wishes("full", binning=binning))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), pixels)
