"""What goes wrong on the way from slide to slide: one sentence each, and never half a result under the final name."""

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor, nn

from bundle.messages import sentence
from bundle.slide_job import Engine, foretell, restore_image
from bundle.slide_plan import NoTissueError, SlidePlanner
from bundle.slide_report.page import PENDING
from bundle.slide_restoration import SlideReport, SlideRestorer
from bundle.slides.damage import MARK, MarkingReader
from bundle.slides.files import Job
from bundle.slides.ledger import BlockLedger
from bundle.slides.reader import ImageError, open_image
from bundle.wishes import Wishes

SHAPE, SIDE = (400, 720), 128  # of the source and of its tiles
GLASS = 243


class Result(NamedTuple):
    restored: Tensor
    defocus_um: Tensor


class Estimator(nn.Module):
    def focus_map(self, image: Tensor) -> Tensor:
        return 6 * image.mean(dim=1, keepdim=True) - 3


class Darker(nn.Module):
    """Restored pixels are three quarters of their own: what was copied and what was not shows."""

    def __init__(self) -> None:
        super().__init__()
        self.prompter = nn.Module()
        self.prompter.estimator = Estimator()
        self.stop_after, self.seed, self.skip_in_focus = "p_diffusion", 5, False

    @property
    def options(self) -> dict[str, object]:
        return {"stop_after": self.stop_after, "seed": self.seed, "skip_in_focus": self.skip_in_focus}

    def binning_of(self, tiles: Iterable[Tensor], camera: object = None) -> int:
        return 1

    def restore(self, image: Tensor, location: Tensor, binning: int = 1) -> Result:
        return Result(image * 0.75, image.mean(dim=(1, 2, 3)))


def tissue() -> np.ndarray:
    """Pink tissue on the left, glass on the right."""
    draw = np.random.default_rng(6)
    pixels = np.full((*SHAPE, 3), GLASS, np.uint8)
    pixels[:, :480] = np.clip(np.array([190, 90, 140]) + draw.normal(0, 9, (SHAPE[0], 480, 3)), 0, 255)
    return pixels


def damaged(path: Path, *segments: int) -> Path:
    """A tiled TIFF; segments that are named hold no JPEG any more."""
    tifffile.imwrite(path, tissue(), tile=(SIDE, SIDE), compression="jpeg", photometric="rgb")
    with tifffile.TiffFile(path) as tiff:
        places = [(tiff.pages[0].dataoffsets[k], tiff.pages[0].databytecounts[k]) for k in segments]
    with path.open("r+b") as file:
        for offset, count in places:
            file.seek(offset)
            file.write(b"\0" * count)
    return path


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    (tmp_path / "inference.json").write_text("{}")
    (tmp_path / "model.pt").write_bytes(b"weights")
    restorer = SlideRestorer(Darker(), 64, 16, block_px=96, batch=3)
    return Engine(restorer, SlidePlanner(), tmp_path / "inference.json", tmp_path / "model.pt")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(engine: Engine, source: Path, result: Path, **wishes: object) -> SlideReport:
    asked = Wishes(**{"mode": "full", "mpp": 0.25} | wishes)
    return restore_image(engine, Job(source, [result]), asked)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_a_tile_that_cannot_be_decoded_is_grey_and_the_rest_of_the_slide_is_restored(
    engine: Engine, tmp_path: Path
) -> None:
    """One bad byte in a night's slide: the pathologist needs the rest, and must see what is missing."""
    result = tmp_path / "out" / "a.tif"
    # Segment 7 lies in tissue, 5 in glass at the right edge: one meets the network, the other only the writer.
    report = run(engine, damaged(tmp_path / "a.tif", 7, 5), result, report=True)
    with open_image(result) as reader:
        pixels = reader.read(0, 0, *SHAPE)
    assert (pixels[128:256, 128:256] == MARK).all() and (pixels[:128, 640:] == MARK).all()
    with open_image(tmp_path / "a.tif") as reader:
        whole = reader.read(256, 0, 144, 400)
    assert np.abs(pixels[256 + 64 :, :400] - whole[64:] * 0.75).max() <= 0.51
    # Tiles of 64 px, 48 px apart: those that touch rows and columns 128..255, and rows 0..127 with columns 640..719.
    assert report.unreadable == 4 * 4 + 3 * 2
    # Who reads the report alone must not take a grey hole for tissue.
    page = (tmp_path / "out" / "a_report.html").read_text(encoding="utf-8")
    assert "22 tiles hold parts that cannot be decoded" in page and PENDING not in page


def test_what_is_grey_does_not_depend_on_a_stop_in_between(engine: Engine, tmp_path: Path, monkeypatch) -> None:
    """A resumed slide must have the bytes and the count of one that ran through."""
    source = damaged(tmp_path / "a.tif", 7, 5)
    whole = run(engine, source, tmp_path / "whole" / "a.tif")
    put = BlockLedger.put
    calls = iter(range(1000))

    def stop_at_ninth(ledger: BlockLedger, *block: object) -> None:
        if next(calls) == 9:
            raise KeyboardInterrupt
        put(ledger, *block)

    with monkeypatch.context() as patch:
        patch.setattr(BlockLedger, "put", stop_at_ninth)
        with pytest.raises(KeyboardInterrupt):
            run(engine, source, tmp_path / "cut" / "a.tif")
    assert left_in(tmp_path / "cut") == ["a.tif.partial"]
    again = run(engine, source, tmp_path / "cut" / "a.tif")
    assert again.unreadable == whole.unreadable > 0
    assert (tmp_path / "cut" / "a.tif").read_bytes() == (tmp_path / "whole" / "a.tif").read_bytes()


def test_strict_stops_at_a_tile_that_cannot_be_decoded(engine: Engine, tmp_path: Path, monkeypatch) -> None:
    """A study that may hold no invented grey must not get any, from an earlier run without --strict neither."""
    source, result = damaged(tmp_path / "a.tif", 7), tmp_path / "out" / "a.tif"
    with pytest.raises(ImageError, match=r"segment 7 of a\.tif cannot be decoded"):
        run(engine, source, result, strict=True)
    assert left_in(result.parent) == []
    with monkeypatch.context() as patch:
        patch.setattr("bundle.slides.writer.write_pyramid", no_space)
        with pytest.raises(OSError, match="disk"):
            run(engine, source, result)
    with pytest.raises(ImageError, match=r"an earlier run without it marked 16: delete .*a\.tif\.partial first"):
        run(engine, source, result, strict=True)
    assert not result.exists()


def no_space(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, "no space on the disk", "a.tif")


@pytest.mark.parametrize("stage", ["blocks", "result", "ledger"])
def test_a_full_disk_is_one_sentence_and_the_work_goes_on_when_there_is_room(
    engine: Engine, tmp_path: Path, monkeypatch, stage: str
) -> None:
    """Slides fill disks: the hours before that must not be lost, and no half slide may carry the final name."""
    source, result = damaged(tmp_path / "a.tif"), tmp_path / "out" / "a.tif"
    put, calls = BlockLedger.put, iter(range(1000))

    def put_until_full(ledger: BlockLedger, *block: object) -> None:
        if next(calls) == 5:
            no_space()
        put(ledger, *block)

    with monkeypatch.context() as patch:
        if stage == "blocks":
            patch.setattr(BlockLedger, "put", put_until_full)
        elif stage == "result":
            patch.setattr("bundle.slides.writer.write_pyramid", no_space)
        else:
            patch.setattr("bundle.slides.ledger.zarr.create_array", no_space)
        with pytest.raises(OSError, match="space") as caught:
            run(engine, source, result)
    told = sentence(caught.value)
    assert told.startswith("the disk is full (a.tif): make room and give the same command again")
    assert left_in(result.parent) == ([] if stage == "ledger" else ["a.tif.partial"])
    assert not list(result.parent.rglob(".mop-*"))
    again = run(engine, source, result)
    assert left_in(result.parent) == ["a.tif"] and again.unreadable == 0


def test_a_target_that_may_not_be_written_is_one_sentence(engine: Engine, tmp_path: Path) -> None:
    """Another's folder or a share mounted to be read: said before any work, without a trace of code."""
    source, out = damaged(tmp_path / "a.tif"), tmp_path / "out"
    out.mkdir()
    pid = os.fork()  # root may write anywhere: the child gives that up
    if pid == 0:
        code = 3
        try:
            out.chmod(0o555)
            if os.geteuid() == 0:
                for parent in (tmp_path, *tmp_path.parents):
                    if parent.stat().st_uid == 0 and len(parent.parts) > 2:
                        parent.chmod(parent.stat().st_mode | 0o055)
                os.setuid(65534)
            run(engine, source, out / "a.tif")
        except PermissionError as error:
            code = 0 if sentence(error).startswith("Permission denied (") and "a.tif.partial" in sentence(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert left_in(out) == []


def test_a_slide_without_tissue_is_refused_and_its_picture_lies_beside(engine: Engine, tmp_path: Path) -> None:
    """An empty glass or a stain the threshold does not know: one look at the picture tells which."""
    source, result = tmp_path / "a.tif", tmp_path / "out" / "b.ome.tif"
    tifffile.imwrite(source, np.full((200, 340, 3), GLASS, np.uint8), photometric="rgb")
    with pytest.raises(NoTissueError, match=r"none was found in a\.tif: look at .*b_no_tissue\.png"):
        run(engine, source, result, mode="adaptive")
    # Another slide of the case: its name differs behind a dot.
    with pytest.raises(NoTissueError, match=r"look at .*c\.2_no_tissue\.png"):
        run(engine, source, tmp_path / "other" / "c.2.ome.tif", mode="adaptive")
    assert left_in(result.parent) == ["b_no_tissue.png"]
    with open_image(result.parent / "b_no_tissue.png") as picture:
        assert picture.shape == (200, 340) and (picture.read(0, 0, 200, 340) == GLASS).all()
    with pytest.raises(NoTissueError):
        foretell(engine, Job(source, [tmp_path / "dry" / "b.tif"]), Wishes(mode="adaptive", mpp=0.25))
    assert not (tmp_path / "dry").exists()


def test_a_slide_that_was_cut_short_is_refused(engine: Engine, tmp_path: Path) -> None:
    """A copy that broke off: its missing half must not come out as grey."""
    source = damaged(tmp_path / "a.tif")
    source.write_bytes(source.read_bytes()[: -source.stat().st_size // 3])
    with pytest.raises(ImageError, match=r"a\.tif is truncated"):
        run(engine, source, tmp_path / "out" / "a.tif")
    assert left_in(tmp_path / "out") == []


@pytest.mark.parametrize("mode", ["coarse", "full"])
def test_damage_in_a_smaller_level_hides_no_tissue(engine: Engine, tmp_path: Path, mode: str) -> None:
    """Tissue is looked for in a small level: grey there would pass for glass, and stay as blurred as it was."""
    source = tmp_path / "a.tif"
    small = np.asarray(Image.fromarray(tissue()).reduce(4))
    with tifffile.TiffWriter(source) as tiff:
        options = {"tile": (SIDE, SIDE), "compression": "jpeg", "photometric": "rgb"}
        tiff.write(tissue(), subifds=1, **options)
        tiff.write(small, subfiletype=1, **options)
    with tifffile.TiffFile(source) as tiff:
        place = tiff.series[0].levels[1].pages[0].dataoffsets[0], tiff.series[0].levels[1].pages[0].databytecounts[0]
    with open_image(source) as whole, MarkingReader(whole) as reader:
        expected = reader.read(0, 0, 64, 96, level=1)
        undamaged = foretell(engine, Job(source, [tmp_path / "b.tif"]), Wishes(mode=mode, mpp=0.25))[0]
    with source.open("r+b") as file:
        file.seek(place[0])
        file.write(b"\0" * place[1])
    with open_image(source) as whole, MarkingReader(whole) as reader:
        seen = reader.read(0, 0, 64, 96, level=1)
        assert np.abs(seen.astype(int) - expected).mean() < 4 and not reader.marked
    assert foretell(engine, Job(source, [tmp_path / "b.tif"]), Wishes(mode=mode, mpp=0.25))[0] == undamaged
