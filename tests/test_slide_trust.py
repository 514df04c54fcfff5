"""A slide that judges itself: the same pixels, the same map after a stop, a report that a browser shows."""

import contextlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import nn

from bundle import slide_job
from bundle.conventions import to_uint8
from bundle.p_diffusion.noise import noise_at
from bundle.restoration import Restoration
from bundle.slide_job import Engine, restore_image
from bundle.slide_plan import SlidePlanner
from bundle.slide_restoration import RestorationStopped, SlideRestorer
from bundle.slides.files import Job
from bundle.slides.reader import ImageError, open_image
from bundle.wishes import Wishes

HEIGHT, WIDTH = 210, 370
BESIDE = ["result_report.html", "result_trust.geojson", "result_trust.tif"]


class Estimator(nn.Module):
    """The redder, the farther."""

    def focus_map(self, image: torch.Tensor) -> torch.Tensor:
        return 6 * image[:, :1] - 3


class Network(nn.Module):
    """A result, a coarse one and a spread that depend on the place alone."""

    def __init__(self) -> None:
        super().__init__()
        self.prompter = nn.Module()
        self.prompter.estimator = Estimator()
        self.stop_after, self.seed, self.skip_in_focus, self.samples = "p_diffusion", 5, False, 1

    @property
    def options(self) -> dict[str, object]:
        return {"stop_after": self.stop_after, "seed": self.seed, "skip_in_focus": self.skip_in_focus}

    def binning_of(self, tiles: Iterable[torch.Tensor], camera: object = None) -> int:
        return 1

    def restore(self, image: torch.Tensor, location: torch.Tensor, binning: int = 1) -> Restoration:
        noise = noise_at(location, *image.shape[-2:], seed=self.seed, draw=1)
        restored = (0.8 * image + 0.05 * noise).clamp(0, 1)
        focus_map = self.prompter.estimator.focus_map(image)
        spread = None if self.samples == 1 else 0.1 * noise[:, :1].abs()
        contrast = torch.full((len(image),), 0.5)
        return Restoration(restored, 0.5 * image, focus_map, focus_map.mean((1, 2, 3)), contrast, {}, spread)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Stained tissue on glass, of every kind, as a TIFF that says its pixel size."""
    cols = np.arange(WIDTH)
    texture = np.random.default_rng(4).normal(0, 9, (HEIGHT, WIDTH))
    red = np.clip(60 + cols * 0.7 + texture, 0, 255)
    pixels = np.stack([red, red * 0.5, red * 0.8], axis=-1)
    pixels[:, 250:] = 243
    path = tmp_path / "in" / "field.tif"
    path.parent.mkdir()
    tifffile.imwrite(path, pixels.astype(np.uint8), photometric="rgb", resolution=(4e4, 4e4), resolutionunit=3)
    (tmp_path / "inference.json").write_text("{}")
    (tmp_path / "model.pt").write_bytes(b"weights")
    return path


def restore(source: Path, result: Path, wishes: Wishes) -> np.ndarray:
    network = Network()
    network.samples = wishes.samples
    folder = source.parents[1]
    restorer = SlideRestorer(network, 64, 16, block_px=96, batch=2)
    engine = Engine(restorer, SlidePlanner(), folder / "inference.json", folder / "model.pt")
    restore_image(engine, Job(source, [result]), wishes)
    with open_image(result) as reader:
        return reader.read(0, 0, HEIGHT, WIDTH)


def test_judging_changes_no_pixel_and_a_run_without_it_leaves_nothing(source: Path, tmp_path: Path) -> None:
    """Who wants to know how far a result can be trusted must get the map of that very result."""
    plain = restore(source, tmp_path / "plain" / "result.ome.tiff", Wishes(mode="adaptive"))
    wishes = Wishes(mode="adaptive", report=True, trust=True, samples=2)
    judged = restore(source, tmp_path / "judged" / "result.ome.tiff", wishes)
    np.testing.assert_array_equal(judged, plain)
    assert [path.name for path in (tmp_path / "plain").iterdir()] == ["result.ome.tiff"]
    assert sorted(path.name for path in (tmp_path / "judged").iterdir()) == ["result.ome.tiff", *BESIDE]
    with tifffile.TiffFile(tmp_path / "plain" / "result.ome.tiff") as file:
        assert "samples" not in str(file.ome_metadata)
    layers = tifffile.imread(tmp_path / "judged" / "result_trust.tif")
    assert layers.shape[0] == 5 and layers[1, 2, 2] > 10 and not layers[4].any()
    assert not layers[:, :, -1].any()  # glass is copied, and nothing about it is in doubt


def test_stopped_and_gone_on_it_ends_with_the_same_map(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells of blocks that an earlier run finished are not judged again: they must have been kept."""
    wishes = Wishes(mode="adaptive", trust=True, samples=2, revert_untrusted="coarse")
    restore(source, tmp_path / "whole" / "result.ome.tiff", wishes)
    stopping = slide_job.stop_after_block
    monkeypatch.setattr(slide_job, "stop_after_block", lambda keeps: contextlib.nullcontext(lambda: True))
    for _ in range(3):
        with pytest.raises(RestorationStopped):
            restore(source, tmp_path / "halves" / "result.ome.tiff", wishes)
    monkeypatch.setattr(slide_job, "stop_after_block", stopping)
    assert [path.name for path in (tmp_path / "halves").iterdir()] == ["result.ome.tiff.partial"]
    with pytest.raises(ValueError, match="unfinished work with another revert_untrusted"):
        restore(source, tmp_path / "halves" / "result.ome.tiff", wishes._replace(revert_untrusted="input"))
    restore(source, tmp_path / "halves" / "result.ome.tiff", wishes)
    for name in ("result.ome.tiff", "result_trust.tif", "result_trust.geojson"):
        assert (tmp_path / "halves" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize(("fallback", "gain"), [("coarse", 0.5), ("input", 1.0)])
def test_untrusted_regions_show_the_fallback(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fallback: str, gain: float
) -> None:
    """The pixels of the file, not only of a tile, must be the P-former's or the input's."""
    monkeypatch.setattr("bundle.trust.gauge.MANY_SAMPLES", (0.0, 100.0, 0.0))  # all that was diffused is in doubt
    wishes = Wishes(mode="full", samples=2, revert_untrusted=fallback, compression="lzw")
    result = restore(source, tmp_path / "out" / "result.tif", wishes)
    with open_image(source) as reader:
        pixels = reader.read(0, 0, HEIGHT, WIDTH)
    expected = to_uint8(torch.from_numpy(pixels.astype(np.float32)) / 255 * gain).numpy().astype(int)
    assert np.abs(result[:, :240].astype(int) - expected[:, :240]).max() <= 1
    held = json.loads((tmp_path / "out" / "result_trust.geojson").read_text())
    (feature,) = held["features"]
    assert feature["properties"]["measurements"]["reverted, share"] > 0.9  # copied glass joins in at the edge


def test_an_image_without_a_pixel_size_is_refused(source: Path, tmp_path: Path) -> None:
    """How far a distance blurs depends on the pixel size: a guess would doubt the wrong places."""
    picture = tmp_path / "in" / "field.png"
    Image.fromarray(np.full((90, 120, 3), 90, np.uint8)).save(picture)
    with pytest.raises(ImageError, match=r"needs the µm per pixel, field.png does not say it: give --mpp"):
        restore(picture, tmp_path / "out" / "result.png", Wishes(trust=True))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_unfinished_work_may_find_its_own_files_beside_it(tmp_path: Path) -> None:
    """A kill between map and result leaves the map: the same command must go on and not complain of it."""
    result, wishes = tmp_path / "result.ome.tiff", Wishes(trust=True, report=True)
    image = tmp_path / "a.tif"
    assert [path.name for path in wishes.results(image, result)[1:]] == [BESIDE[2], BESIDE[1], BESIDE[0]]
    (tmp_path / "result.ome.tiff.partial").mkdir()
    assert wishes.results(image, result) == [result]


def test_a_slide_of_a_scanner_gets_its_report_unless_told_otherwise(tmp_path: Path) -> None:
    """`mop restore slide.svs` ends with a page that says what was done; a field of a few pixels needs none."""
    result = tmp_path / "result.ome.tiff"
    for image, told, expected in (("a.svs", None, True), ("a.dcm", None, True), ("a.tif", None, False),
                                  ("a.svs", False, False), ("a.tif", True, True)):  # fmt: skip
        beside = Wishes(report=told).beside(Job(Path(image), [result]))
        assert [path.name for path in beside] == ["result_report.html"] * expected, (image, told)


def test_a_browser_shows_the_report_from_a_file(
    source: Path, tmp_path: Path, photograph: Callable[[str, tuple[int, int]], np.ndarray]
) -> None:
    """The report goes by mail: it may neither fetch anything nor show an empty frame."""
    restore(source, tmp_path / "out" / "result.png", Wishes(mode="full", mpp=0.25, report=True, trust=True))
    page = (tmp_path / "out" / "result_report.html").read_text(encoding="utf-8")
    body = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", body)
    assert "not for primary diagnosis" in page.lower() and "weights sha256" in page and "reblur" in page
    seen = photograph((tmp_path / "out" / "result_report.html").as_uri(), (3600, 1280)).astype(float)
    rows, cols = np.nonzero(np.abs(seen - (255, 212, 0)).max(axis=2) < 6)
    handle = int(np.bincount(cols).argmax())
    assert np.count_nonzero(cols == handle) > 400, "no curtain in sight"
    middle = int(rows[cols == handle].mean()) + 60
    # The result is darker by a fifth.
    left, right = (seen[middle - 25 : middle + 25, col - 9 : col + 9].mean() for col in (handle - 25, handle + 25))
    assert right / left == pytest.approx(0.8, abs=0.07)
