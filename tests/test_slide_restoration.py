"""Whole images through small stand-ins of the tile restorer: every pixel in its place, whatever the block, the batch
and the order.
"""

import gc
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from bundle import slide_restoration
from bundle.optics.binning import binned, unbinned
from bundle.progress import Progress
from bundle.slide_plan import Kind, SlidePlan
from bundle.slide_restoration import FOCUS_MAP_SIDE_PX, RestorationStopped, SlideRestorer
from bundle.slides.grid import Box, TileGrid
from bundle.slides.pyramid import Record
from bundle.slides.reader import ImageReader, SlideFacts, open_image
from bundle.slides.writer import ImageSink


class Result(NamedTuple):
    restored: Tensor
    defocus_um: Tensor


class Estimator(nn.Module):
    def focus_map(self, image: Tensor) -> Tensor:
        return 4 * image.mean(dim=1, keepdim=True) - 2


class Prompter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.estimator = Estimator()


class FakeRestorer(nn.Module):
    """Returns its input; remembers what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.prompter, self.stop_after = Prompter(), "p_diffusion"
        self.calls: list[tuple[Tensor, Tensor]] = []

    def change(self, image: Tensor, location: Tensor) -> Tensor:
        return image

    def binning_of(self, tiles: Iterable[Tensor], camera: object = None) -> int:
        return 1

    def restore(self, image: Tensor, location: Tensor, binning: int = 1) -> Result:
        assert torch.is_inference_mode_enabled() and location.dtype == torch.int64
        self.calls.append((image, location))
        return Result(self.change(image, location), image.mean(dim=(1, 2, 3)) - 1)


class ByPosition(FakeRestorer):
    """Depends on the position within the tile, as a network with borders does: the worst case for seams and order."""

    def change(self, image: Tensor, location: Tensor) -> Tensor:
        ramp = torch.linspace(0, 0.3, image.shape[-1]) + torch.linspace(0, 0.2, image.shape[-2])[:, None]
        return (image * 0.7 + ramp).sqrt()


class NoiseByLocation(FakeRestorer):
    """Adds noise of a field tied to the image's coordinates, as P-diffusion does."""

    FIELD = torch.rand(3, 600, 600, generator=torch.Generator().manual_seed(3))

    def change(self, image: Tensor, location: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        noise = [self.FIELD[:, row : row + height, col : col + width] for row, col in location.tolist()]
        return image * 0.5 + torch.stack(noise) * 0.5


class Beyond(FakeRestorer):
    """Leaves [0, 1] on both sides, as any network does."""

    def change(self, image: Tensor, location: Tensor) -> Tensor:
        return image * 3 - 1


class MemoryReader(ImageReader):
    def __init__(self, pixels: np.ndarray) -> None:
        super().__init__(Path("field.png"), pixels.shape[:2], SlideFacts())
        self.pixels = pixels

    def _read(self, box: Box, level: int) -> np.ndarray:
        return self.pixels[box.row : box.bottom, box.col : box.right].copy()

    def close(self) -> None:
        pass


class MemorySink(ImageSink):
    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__(Path("never-written.png"), shape, Record("field"), overwrite=False)
        self.pixels = np.zeros((*shape, 3), np.uint8)

    def _put(self, box: Box, pixels: np.ndarray, figures: Sequence[float]) -> None:
        self.pixels[box.row : box.bottom, box.col : box.right] = pixels

    def read(self, row: int, col: int, height: int, width: int) -> np.ndarray:
        return self.pixels[row : row + height, col : col + width]

    def _save(self) -> None:
        pass

    def _release(self, failed: bool) -> None:
        assert self._missing == 0


def field(height: int = 210, width: int = 170) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def restored(network: FakeRestorer, pixels: np.ndarray, **sizes: int) -> np.ndarray:
    sink = MemorySink(pixels.shape[:2])
    SlideRestorer(network, **{"tile_px": 64, "overlap_px": 16} | sizes).restore(MemoryReader(pixels), sink)
    assert sink._missing == 0
    return sink.pixels


@pytest.mark.parametrize("shape", [(210, 170), (64, 64), (40, 33), (40, 300), (113, 64)])
@pytest.mark.parametrize("block_px", [1, 64, 100, 2048])
def test_an_image_that_needs_no_change_comes_back_bit_by_bit(shape: tuple[int, int], block_px: int) -> None:
    """uint8 -> restore -> uint8: what is in focus and skipped must not change by a single grey level."""
    pixels = field(*shape)
    np.testing.assert_array_equal(restored(FakeRestorer(), pixels, block_px=block_px), pixels)


@pytest.mark.parametrize("network", [ByPosition, NoiseByLocation])
@pytest.mark.parametrize(("block_px", "batch"), list(itertools.product([48, 64, 130, 2048], [1, 3, 100])))
def test_the_pixels_do_not_depend_on_block_or_batch(network: type[FakeRestorer], block_px: int, batch: int) -> None:
    """A machine with less memory must give the same diagnosis."""
    pixels = field()
    expected = restored(network(), pixels)
    assert (expected != pixels).any()
    np.testing.assert_array_equal(restored(network(), pixels, block_px=block_px, batch=batch), expected)


class Binned(NoiseByLocation):
    """Restores at the sizes of pixels of the binning that it is told, as the chain does."""

    def restore(self, image: Tensor, location: Tensor, binning: int = 1) -> Result:
        sizes = (1,) if binning == 1 else (1, 2, 4)
        each = [super(Binned, self).restore(binned(image, size), location // size) for size in sizes]
        parts = [unbinned(one.restored, size, *image.shape[-2:]) for size, one in zip(sizes, each, strict=True)]
        return each[0]._replace(restored=torch.stack(parts).clamp(0, 1).mean(0))


@pytest.mark.parametrize("block_px", [64, 130])
def test_binned_pixels_do_not_depend_on_the_block_and_have_no_seams(block_px: int) -> None:
    """Tiles that begin inside the pixels that are taken together would bin others than their neighbours do."""
    pixels = field(224, 352)
    whole = restored(Binned(), pixels, tile_px=352, overlap_px=0, binning=2)
    tiled = restored(Binned(), pixels, binning=2)
    np.testing.assert_array_equal(restored(Binned(), pixels, block_px=block_px, binning=2), tiled)
    off = np.abs(tiled.astype(int) - whole)
    assert off.mean() < 0.5 < np.abs(restored(Binned(), pixels).astype(int) - whole).mean()


def test_the_network_sees_tiles_of_its_size_in_binned_pixels() -> None:
    """Attention and gates pool over a tile: half as much tissue is not what they have learned on."""
    plain = SlideRestorer(FakeRestorer(), 64, 16, 300, 3)
    twice = plain.binned(2)
    assert (twice.tile_px, twice.overlap_px, twice.block_px, twice.batch, twice.binning) == (128, 32, 300, 3, 2)
    assert twice.binned(1).tile_px == 64 and plain.estimator is plain.tile_restorer.prompter.estimator
    image = torch.rand(1, 3, 64, 64)
    assert torch.allclose(twice.estimator.focus_map(image).mean(), plain.estimator.focus_map(image).mean(), atol=1e-4)


def test_a_slide_is_never_binned_by_itself() -> None:
    """A scanner's camera fits its optics, whatever one blurred slide looks like."""
    class Oversampled(FakeRestorer):
        def binning_of(self, tiles: Iterable[Tensor], camera: Callable[[], float] | None = None) -> int:
            assert camera is None and all(tile.shape == (3, 64, 64) and float(tile.max()) <= 1 for tile in tiles)
            return 2

    restorer, reader = SlideRestorer(Oversampled(), 64, 16), MemoryReader(field())
    assert restorer.binning_of(reader) == 2
    reader.is_slide = True
    assert restorer.binning_of(reader) == 1


def test_images_of_one_size_are_read_as_one_camera_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one image leaves in doubt twelve may tell; another size, a broken file or a slide must not have a say."""
    asked, opened = [], []

    class Oversampled(FakeRestorer):
        def binning_of(self, tiles: Iterable[Tensor], camera: Callable[[], float] | None = None) -> int:
            own = max(float(tile.mean()) for tile in tiles)
            return 2 if (own if camera is None else camera()) > 0.8 else 1

        def log2_oversampling_of(self, tiles: Iterable[Tensor]) -> float:
            asked.append([round(255 * float(tile.mean())) for tile in tiles])
            return max(asked[-1]) / 255

    sizes = {"a.png": (64, 64, 40), "b.png": (64, 64, 230), "c.png": (64, 96, 90), "d.png": (96, 64, 250)}
    for name, (height, width, grey) in sizes.items():
        Image.fromarray(np.full((height, width, 3), grey, np.uint8)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.fromarray(np.full((64, 64, 3), 250, np.uint8)).save(tmp_path / "slide.png")
    names = ("a.png", "b.png", "broken.png", "missing.png", "c.png", "d.png", "slide.png")
    beside = [tmp_path / name for name in names]
    restorer, phases = SlideRestorer(Oversampled(), 64, 16), []

    def opens(path: Path, plane: int | None) -> ImageReader:
        opened.append((path.name, plane))
        reader = open_image(path)
        reader.is_slide = path.name == "slide.png"
        return reader

    monkeypatch.setattr(slide_restoration, "open_image", opens)

    def follow(phase: str) -> Progress:
        return lambda done, total: phases.append((phase, done, total))

    def binning(name: str, images: list[Path]) -> int:
        with open_image(tmp_path / name) as reader:
            return restorer.binning_of(reader, images, plane=3, follow=follow)

    assert [binning(name, beside) for name in ("a.png", "b.png", "c.png", "d.png")] == [2, 2, 1, 2]
    assert asked == [[40, 230], [90, 90], [250, 250]]  # once for each camera; what was read is known
    assert phases[:7] == [("images of its camera seen", done, 7) for done in range(7)]
    assert opened[:7] == [(name, 3) for name in names]
    later = [name for name, _ in opened[7:]]  # of the others the size is known by now
    assert later == ["broken.png", "missing.png", "c.png", "broken.png", "missing.png", "d.png"]
    assert binning("a.png", []) == binning("a.png", [tmp_path / "a.png"]) == 1


def test_noise_tied_to_the_image_passes_the_seams_unharmed() -> None:
    """Feathering two different noises halves their variance along every seam: visible stripes."""
    pixels = field()
    truth = pixels / 255 * 0.5 + NoiseByLocation.FIELD[:, :210, :170].permute(1, 2, 0).numpy() * 0.5
    assert np.abs(restored(NoiseByLocation(), pixels, block_px=100) - truth * 255).max() <= 0.51


def test_values_outside_the_range_are_clipped_and_never_wrap() -> None:
    """300 as uint8 is 44: a white hole turns into a black one."""
    pixels = field()
    expected = np.clip(np.round(pixels.astype(float) * 3 - 255), 0, 255)
    assert np.abs(restored(Beyond(), pixels) - expected).max() <= 1


def test_every_tile_has_the_same_size_and_knows_where_it_lies() -> None:
    """Noise and positions are tied to the image by the location; batches need equal sizes."""
    pixels = field()
    network = FakeRestorer()
    restored(network, pixels, block_px=100, batch=2)
    for images, locations in network.calls:
        assert images.shape[1:] == (3, 64, 64) and len(images) == len(locations) <= 2
        for image, (row, col) in zip(images, locations.tolist(), strict=True):
            window = pixels[row : row + 64, col : col + 64].transpose(2, 0, 1)
            np.testing.assert_array_equal((image.numpy() * 255).round().astype(np.uint8), window)


def test_no_tile_runs_twice_within_a_row_of_blocks_and_progress_counts_the_runs() -> None:
    """The network is 95 % of the time: tiles between two blocks are kept, and the ETA must end at 100 %."""
    for shape, block_px, again in (((60, 300), 96, 0), ((60, 300), 2048, 0), ((210, 170), 96, 3 * 4)):
        network, steps = FakeRestorer(), list[tuple[int, int]]()

        def note(done: int, total: int, steps: list[tuple[int, int]] = steps) -> None:
            steps.append((done, total))

        SlideRestorer(network, 64, 16, block_px).restore(MemoryReader(field(*shape)), MemorySink(shape), note)
        assert len(network.calls) == len(TileGrid(*shape, 64, 16)) + again
        assert steps[-1] == (len(network.calls),) * 2


def test_the_report_counts_every_tile_once_whatever_the_block() -> None:
    """Figures that change with the memory setting are no figures."""
    pixels = field()
    pixels[:, :100] //= 4
    pixels[:60] //= 3
    reports = [
        SlideRestorer(FakeRestorer(), 64, 16, block_px).restore(MemoryReader(pixels), MemorySink((210, 170)))
        for block_px in (48, 100, 2048)
    ]
    assert {report.tiles for report in reports} == {20} and {report.untouched for report in reports} == {1.0}
    assert [report.mean_defocus_um for report in reports] == pytest.approx([reports[2].mean_defocus_um] * 3)
    assert 0.4 < reports[0].mean_defocus_um < 1 and reports[0].seconds > 0
    changed = SlideRestorer(ByPosition(), 64, 16).restore(MemoryReader(pixels), MemorySink((210, 170)))
    assert changed.untouched < 0.01


def kinds_in_columns(pixels: np.ndarray) -> SlidePlan:
    """Columns of tiles, one kind after the other."""
    grid = TileGrid(*pixels.shape[:2], 64, 16)
    row = [list(Kind)[j % len(Kind)] for j in range(len(grid.cols))]
    kinds = np.array([row] * len(grid.rows), np.uint8)
    return SlidePlan(kinds, np.where(kinds > Kind.BACKGROUND, 2.5, np.nan).astype(np.float32))


class ByStage(FakeRestorer):
    """Black after the P-former, white after the whole chain."""

    def change(self, image: Tensor, location: Tensor) -> Tensor:
        return torch.full_like(image, self.stop_after == "p_diffusion")


def test_each_kind_of_tile_takes_its_way() -> None:
    """What is in focus stays as it was bit by bit, mild and hopeless tiles see no P-diffusion."""
    pixels = field(64, 64 + 48 * 4)  # one row of tiles: background, in focus, mild, strong, hopeless
    network, sink = ByStage(), MemorySink(pixels.shape[:2])
    report = SlideRestorer(network, 64, 16, batch=4).restore(
        MemoryReader(pixels), sink, plan=kinds_in_columns(pixels)
    )
    np.testing.assert_array_equal(sink.pixels[:, :96], pixels[:, :96])
    assert not sink.pixels[:, 112:144].any() and not sink.pixels[:, 208:].any()
    assert (sink.pixels[:, 160:192] == 255).all()
    assert [len(images) for images, _ in network.calls] == [1, 1, 1] and network.stop_after == "p_diffusion"
    assert report.kinds == dict.fromkeys(Kind, 1) and report.untouched == pytest.approx(2 / 5, abs=0.01)


def test_a_block_without_work_is_left_to_the_writer() -> None:
    """Cost must follow the tissue out of focus, not the glass around it."""
    pixels = field(64, 64 + 48 * 9)
    plan = kinds_in_columns(pixels)
    plan.kinds[:] = Kind.BACKGROUND
    plan.kinds[0, 9] = Kind.STRONG
    network, sink, copied = FakeRestorer(), MemorySink(pixels.shape[:2]), []
    sink._copy = lambda box, source: copied.append(box)  # type: ignore[method-assign]
    SlideRestorer(network, 64, 16, block_px=96).restore(MemoryReader(pixels), sink, plan=plan)
    assert len(network.calls) == 1 and [box.col for box in copied] == [0, 96, 192, 288]


class BatchBound(FakeRestorer):
    """Rounds otherwise in another batch, as matrix products do, and by the place within it."""

    def change(self, image: Tensor, location: Tensor) -> Tensor:
        place = torch.arange(1, len(image) + 1).view(-1, 1, 1, 1)
        return image * 0.5 + (len(image) * 10 + place) / 255


class Resuming(MemorySink):
    """Holds some blocks of an earlier run."""

    def __init__(self, earlier: np.ndarray, done: set[tuple[int, int]]) -> None:
        super().__init__(earlier.shape[:2])
        self.earlier, self.done = earlier, done

    def _finished(self, block: Box) -> np.ndarray | None:
        if (block.row, block.col) not in self.done:
            return None
        self.pixels[block.row : block.bottom, block.col : block.right] = self.earlier[
            block.row : block.bottom, block.col : block.right
        ]
        return np.array([1.0, 2.0, 0.0, 0.0])


@pytest.mark.parametrize("seed", range(6))
def test_blocks_that_an_earlier_run_finished_change_nothing(seed: int) -> None:
    """A kill in between must not show, also where the network's last bit depends on its batch."""
    pixels = field(200, 300)
    plan = kinds_in_columns(pixels) if seed % 2 else None
    sink, whole = MemorySink((200, 300)), BatchBound()
    SlideRestorer(whole, 64, 16, block_px=96, batch=3).restore(MemoryReader(pixels), sink, plan=plan)
    blocks = list(TileGrid(200, 300, 64, 16).blocks(96))
    done = {(b.row, b.col) for b in blocks if np.random.default_rng([seed, b.row, b.col]).random() < 0.5}
    again, network = Resuming(sink.pixels, done), BatchBound()
    SlideRestorer(network, 64, 16, block_px=96, batch=3).restore(MemoryReader(pixels), again, plan=plan)
    np.testing.assert_array_equal(again.pixels, sink.pixels)
    assert done and sum(len(images) for images, _ in network.calls) <= sum(len(images) for images, _ in whole.calls)


def test_a_stop_comes_after_the_block_that_is_under_way() -> None:
    """Ctrl-C must not throw away the minutes of a block."""
    sink, asked = MemorySink((200, 300)), iter([False, True])
    with pytest.raises(RestorationStopped):
        SlideRestorer(FakeRestorer(), 64, 16, block_px=96).restore(
            MemoryReader(field(200, 300)), sink, stopped=lambda: next(asked)
        )
    assert sink._missing == 200 * 300 - 2 * 96 * 96


def test_the_focus_map_has_one_value_per_cell_of_a_large_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The map must lie over its image: a shifted one sends the user to the wrong place."""
    monkeypatch.setattr("bundle.slide_restoration.FOCUS_MAP_SIDE_PX", 70)
    pixels = field()
    full = 4 * pixels.mean(axis=2) / 255 - 2
    expected = [[full[r : r + 3, c : c + 3].mean() for c in range(0, 170, 3)] for r in range(0, 210, 3)]
    for block_px in (50, 2048):
        focus = SlideRestorer(FakeRestorer(), 64, 16, block_px).focus_map(MemoryReader(pixels))
        assert focus.scale == 3 and focus.defocus_um.dtype == np.float32
        np.testing.assert_allclose(focus.defocus_um, expected, atol=1e-4)


def test_the_focus_map_of_a_small_image_has_its_size() -> None:
    """A field is shown at full resolution, with the sign kept."""
    assert FOCUS_MAP_SIDE_PX >= 1024
    focus = SlideRestorer(FakeRestorer()).focus_map(MemoryReader(field(50, 40)))
    assert focus.defocus_um.shape == (50, 40) and focus.scale == 1
    assert focus.defocus_um.min() < 0 < focus.defocus_um.max()


def test_memory_follows_the_block_and_not_the_image() -> None:
    """A slide is larger than any memory: beside input and output only a block may be held."""
    pixels = np.zeros((1200, 1200, 3), np.uint8)
    reader, sink = MemoryReader(pixels), MemorySink((1200, 1200))
    held: list[int] = []

    class Counting(FakeRestorer):
        calls_seen = 0

        def restore(self, image: Tensor, location: Tensor, binning: int = 1) -> Result:
            self.calls_seen += 1
            if self.calls_seen % 60 == 1:
                held.append(sum(t.numel() * t.element_size() for t in gc.get_objects() if type(t) is Tensor))
            return Result(image.clone(), torch.zeros(len(image)))

    SlideRestorer(Counting(), 64, 16, 200).restore(reader, sink)
    assert len(held) > 8 and max(held) - held[0] < 3 * 2**20, held  # the float image has 16 MiB


@pytest.mark.parametrize(
    ("sizes", "rule"),
    [
        ({"batch": 0}, "batch and block_px must be positive, got 0"),
        ({"block_px": 0}, "batch and block_px must be positive"),
        ({"binning": 0}, "binning must be 1 or 2, got 0"),
        ({"tile_px": 0}, "tile_px must be positive, got 0"),
        ({"tile_px": 64, "overlap_px": 33}, "got 33"),
    ],
)
def test_sizes_state_their_rule_before_any_image_is_opened(sizes: dict[str, int], rule: str) -> None:
    """A typing error must not cost the loading of a slide."""
    with pytest.raises(ValueError, match=rule):
        SlideRestorer(FakeRestorer(), **sizes)
