"""The plan: each tile gets what its distance to focus asks for, and what was not looked at takes a neighbour's word."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bundle.slide_plan import Kind, SlidePlan, SlidePlanner, plan_all
from bundle.slides.grid import Box, TileGrid
from bundle.slides.reader import ImageReader, SlideFacts

GLASS, CPU = 240, torch.device("cpu")


class Painted(ImageReader):
    """Glass with red tissue whose blue value says how far out of focus it is: 10 grey levels a µm, minus at 100."""

    def __init__(self, height: int, width: int, parts: dict[Box, float]) -> None:
        super().__init__(Path("painted.svs"), (height, width), SlideFacts(mpp=0.5, scanned=True))
        self.pixels = np.full((height, width, 3), GLASS, np.uint8)
        for box, distance in parts.items():
            self.pixels[box.row : box.bottom, box.col : box.right] = (200, 40, 100 + round(10 * distance))

    def _read(self, box: Box, level: int) -> np.ndarray:
        return self.pixels[box.row : box.bottom, box.col : box.right].copy()

    def close(self) -> None:
        pass


class Estimator(nn.Module):
    """Reads the distance from the paint; counts its calls."""

    calls = 0

    def focus_map(self, image: Tensor) -> Tensor:
        self.calls += 1
        tissue = image[:, 1:2] < 0.5
        distance = torch.where(tissue, (image[:, 2:] * 255 - 100) / 10, 0)
        return (distance.sum() / tissue.sum()).reshape(1, 1, 1, 1)


def columns(*distances: float, height: int = 256) -> Painted:
    """Tissue in columns of 256 px, one distance each; the last column is glass."""
    parts = {Box(0, 256 * k, height, 256): distance for k, distance in enumerate(distances)}
    return Painted(height, 256 * (len(distances) + 1), parts)


def plan_of(reader: Painted, mode: str = "adaptive", **options: float) -> tuple[SlidePlan, Estimator]:
    estimator = Estimator()
    grid = TileGrid(*reader.shape, 64, 0)
    return SlidePlanner(**options).plan(reader, grid, mode, estimator, CPU), estimator


def test_each_tile_gets_what_its_distance_asks_for() -> None:
    """A sign or a threshold on the wrong side sends the blurred half of a slide through untouched."""
    plan, _ = plan_of(columns(0.3, -0.9, 2.0, -3.0, 8.0, -0.1), in_focus_um=0.4, strong_um=1.2, hopeless_um=5)
    expected = [Kind.IN_FOCUS, Kind.MILD, Kind.STRONG, Kind.STRONG, Kind.HOPELESS, Kind.IN_FOCUS, Kind.BACKGROUND]
    for k, kind in enumerate(expected):
        assert (plan.kinds[:, 4 * k + 1 : 4 * k + 3] == kind).all(), kind
    assert plan.defocus_um[1, 5] == pytest.approx(-0.9, abs=0.05) and np.isnan(plan.defocus_um[1, 26])
    assert sum(plan.counts().values()) == plan.kinds.size


@pytest.mark.parametrize(("mode", "kind"), [("full", Kind.STRONG), ("coarse", Kind.MILD)])
def test_full_and_coarse_treat_all_tissue_alike_and_ask_nobody(mode: str, kind: Kind) -> None:
    """These modes are for those who do not trust the estimator."""
    plan, estimator = plan_of(columns(0.1, 8.0), mode)
    assert (plan.kinds[:, :8] == kind).all() and (plan.kinds[:, 9:] == Kind.BACKGROUND).all()
    assert estimator.calls == 0 and np.isnan(plan.defocus_um).all()


def test_the_estimator_looks_at_a_raster_and_at_every_islet() -> None:
    """All tiles would take minutes; a raster alone would overlook a biopsy's crumbs."""
    plan, estimator = plan_of(columns(2.0, 2.0, 2.0), stride=2)
    assert estimator.calls <= 4 * 13 // 4 + 4 and (plan.kinds[:, :12] == Kind.STRONG).all()
    islet = Painted(640, 640, {Box(3 * 64, 5 * 64, 64, 64): 2.0, Box(0, 0, 64, 64): 0.0})
    plan, _ = plan_of(islet, stride=4)
    assert plan.kinds[3, 5] == Kind.STRONG and plan.kinds[0, 0] == Kind.IN_FOCUS


def test_a_large_slide_is_looked_at_in_seconds() -> None:
    """`mop focus` promises seconds: a slide of ten thousand tiles is looked at on a coarser raster, islets included."""
    islet = Box(0, 1920, 128, 128)
    reader = Painted(1024, 2048, {Box(0, 0, 1024, 512): 2.0, Box(0, 512, 1024, 512): -3.0, islet: 0.5})
    estimator, grid = Estimator(), TileGrid(*reader.shape, 64, 0)
    told: list[tuple[int, int]] = []
    planner = SlidePlanner(stride=2)
    plan = planner.plan(reader, grid, "adaptive", estimator, CPU, lambda *progress: told.append(progress), 24)
    assert estimator.calls <= 24 and told == [(k + 1, estimator.calls) for k in range(estimator.calls)]
    assert plan.defocus_um[5, 1] == pytest.approx(2, abs=0.1) and plan.defocus_um[5, 14] == pytest.approx(-3, abs=0.1)
    assert plan.defocus_um[0, 31] == pytest.approx(0.5, abs=0.1)
    whole = planner.plan(reader, grid, "adaptive", Estimator(), CPU)
    np.testing.assert_array_equal(np.isnan(whole.defocus_um), np.isnan(plan.defocus_um))


def test_the_bound_holds_for_fragments_and_strips_and_every_part_of_them_is_looked_at() -> None:
    """Thin cores fall between the places of a coarse raster: by strides alone all tiles were looked at, or one."""
    tissue = np.zeros((90, 120), bool)
    tissue[np.random.default_rng(0).random(tissue.shape) < 0.1] = True
    tissue[:, 57:59] = True
    for most in (500, 60, 1):
        probes = SlidePlanner()._probes(tissue, most)
        assert most // 2 <= len(probes) <= most and all(tissue[place] for place in probes)
    far = np.array(SlidePlanner()._probes(tissue, 60))
    places = np.argwhere(tissue)
    assert np.abs(places[:, None] - far[None]).max(axis=2).min(axis=1).max() <= 30
    assert len(SlidePlanner()._probes(tissue, None)) > 500


def test_a_slide_without_tissue_is_refused() -> None:
    """A copy of the input that claims to be restored would be the worst answer."""
    with pytest.raises(ValueError, match=r"must show tissue, none was found in painted\.svs"):
        plan_of(columns())


def test_a_plan_comes_back_from_the_disk(tmp_path: Path) -> None:
    """A resumed run that plans anew could sort a tile otherwise."""
    plan, _ = plan_of(columns(0.3, 2.0))
    plan.save(tmp_path / "plan.npz")
    again = SlidePlan.load(tmp_path / "plan.npz")
    np.testing.assert_array_equal(again.kinds, plan.kinds)
    np.testing.assert_array_equal(again.defocus_um, plan.defocus_um)


def test_the_plan_of_a_field_runs_the_chain_everywhere() -> None:
    """A field was chosen by hand: its pale parts are wanted too."""
    assert plan_all(TileGrid(100, 300, 64, 16)).counts()[Kind.STRONG] == len(TileGrid(100, 300, 64, 16))


@pytest.mark.parametrize(("options", "rule"), [
    ({"in_focus_um": 2.0, "strong_um": 1.0}, "in_focus_um <= strong_um <= hopeless_um must hold, got 2.0, 1.0"),
    ({"stride": 0}, "stride must be positive, got 0"),
])
def test_a_planner_states_its_rules(options: dict[str, float], rule: str) -> None:
    """Thresholds in the wrong order sort tiles into kinds that nobody meant."""
    with pytest.raises(ValueError, match=rule):
        SlidePlanner(**options)


def test_an_unknown_mode_is_refused() -> None:
    """A typing error must not become the slowest mode."""
    with pytest.raises(ValueError, match="mode must be one of full, coarse, adaptive, got fast"):
        plan_of(columns(1.0), "fast")
