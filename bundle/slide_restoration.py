"""Restore an image of any size: blocks of it, tiles of a block, one block of memory.

    image --plan--> kinds of tiles --tile restorer--> tiles --BlockBlend--> block --sink--> image

Blocks only bound the memory. The tiles belong to the image's grid, and each one is told where it lies, so the pixels
are the same whatever the block size, and whatever blocks an earlier run has finished.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from bundle.beside import WriteBehind
from bundle.conventions import from_uint8, to_uint8
from bundle.progress import Follow, Progress, unfollowed
from bundle.restoration import PROBES, BinnedEstimator, check_binning
from bundle.slide_plan import Kind, MapsFocus, SlidePlan, plan_all
from bundle.slides.grid import Box, TileGrid
from bundle.slides.ledger import FIGURES
from bundle.slides.reader import ImageReader, open_image
from bundle.slides.writer import ImageSink
from bundle.tile_runs import RunTiles, TileFigures, TileResult, TileRuns

if TYPE_CHECKING:
    from bundle.restoration import TileRestorer
    from bundle.trust.cells import CellStore
    from bundle.trust.gauge import TrustGauge

COMPARING = "images of its camera seen"  # what a progress bar says is under way
FOCUS_MAP_SIDE_PX = 2048  # a focus map is averaged down to at most this many values a side


class SlideReport(NamedTuple):
    """What became of one image; every tile of the grid counts once."""

    height: int
    width: int
    tiles: int
    untouched: float  # share of pixels that left as they came: background, or in focus and skipped
    mean_defocus_um: float  # mean of |defocus| over the tiles that were looked at, µm
    seconds: float
    kinds: dict[Kind, int]  # tiles of each kind
    unreadable: int = 0  # tiles of which parts could not be decoded: copied, the damage is grey
    kept: str = ""  # how many of the source's encoded tiles are in the result as they were, or why none is
    binning: int = 1  # 2: restored as of a camera that oversamples


class RestorationStopped(KeyboardInterrupt):
    """The caller asked to stop; the block that was under way is finished and kept."""


class TrustKeeping(NamedTuple):
    """Who judges the tiles, and who keeps what was judged."""

    gauge: TrustGauge
    cells: CellStore


class FocusMap(NamedTuple):
    """Signed distance to best focus over an image."""

    defocus_um: NDArray[np.float32]  # (ceil(H / scale), ceil(W / scale)), µm
    scale: int  # image pixels per value, along each side


class _Camera(NamedTuple):
    """Images that are taken for one camera's."""

    shape: tuple[int, int]  # those of another do not count
    images: tuple[Path, ...]
    plane: int | None


class SlideRestorer:
    """Runs a tile restorer over an image.

    Args:
        tile_restorer: network of one tile, on its device and with its options set.
        tile_px: side of a tile; an image with a shorter side gets tiles of that side.
        overlap_px: px shared by neighbours and feathered, 0..tile_px / 2.
        block_px: side of a block; only memory (about 50 bytes a pixel) and time depend on it: tiles on a block's lower
            edge are restored twice, 10 % of all at 2048 px, 20 % at 1024.
        batch: tiles per call of the network.
        binning: see `TileRestorer.restore`; tiles and overlap are those of the image's own pixels.

    Raises:
        ValueError: a size is out of range.
    """

    def __init__(
        self,
        tile_restorer: TileRestorer,
        tile_px: int = 256,
        overlap_px: int = 64,
        block_px: int = 2048,
        batch: int = 1,
        binning: int = 1,
    ) -> None:
        if batch < 1 or block_px < 1:
            raise ValueError(f"batch and block_px must be positive, got {batch} and {block_px}.")
        check_binning(binning)
        TileGrid(1, 1, tile_px, overlap_px)  # states its rules before any image is opened
        self.tile_restorer, self.batch = tile_restorer, batch
        self._log2_oversampling: dict[_Camera, float] = {}
        self._shapes: dict[Path, tuple[int, int]] = {}  # of images beside others
        self.tile_px, self.overlap_px, self.block_px, self.binning = tile_px, overlap_px, block_px, binning
        held = next(itertools.chain(tile_restorer.parameters(), tile_restorer.buffers()), torch.zeros(()))
        self.device = held.device

    def binned(self, binning: int) -> SlideRestorer:
        """The same for images that are restored in `binning`: 2 x 2 pixels fill the network's tiles as before."""
        share = binning / self.binning
        return SlideRestorer(self.tile_restorer, round(self.tile_px * share), round(self.overlap_px * share),
                             self.block_px, self.batch, binning)  # fmt: skip

    def binning_of(self, reader: ImageReader, beside: Sequence[Path] = (), plane: int | None = None,
                   follow: Follow = unfollowed) -> int:
        """What an image should be restored in, by `PROBES` of its tiles; a slide as it is.

        A scanner's camera fits its optics, and says how many µm a pixel has.

        Args:
            reader: of the image.
            beside: images that lie beside it, itself among them; those of its size are taken for one camera's, whose
                oversampling all of them tell (docs/decisions/0016-one-camera.md). What cannot be read tells nothing.
            plane: see `open_image`.
            follow: gives the progress of looking at them.
        """
        if reader.is_slide:
            return 1
        camera = _Camera(reader.shape, tuple(beside), plane)

        def log2_oversampling() -> float:
            if camera not in self._log2_oversampling:
                tiles = self._probed_beside(camera, follow(COMPARING))
                self._log2_oversampling[camera] = self.tile_restorer.log2_oversampling_of(tiles)
            return self._log2_oversampling[camera]

        return self.tile_restorer.binning_of(self._probed(reader), log2_oversampling if len(beside) > 1 else None)

    def _probed(self, reader: ImageReader) -> Iterator[Tensor]:
        """Some tiles of an image, (3, h, w) in [0, 1] each."""
        for box in self.grid(reader).some(PROBES):
            tile = torch.from_numpy(reader.read(*box)).permute(2, 0, 1).contiguous()
            yield from_uint8(tile).to(self.device)

    def _probed_beside(self, camera: _Camera, progress: Progress) -> Iterator[Tensor]:
        """Some tiles of every image of a camera."""
        for done, image in enumerate(camera.images):
            progress(done, len(camera.images))
            if self._shapes.get(image, camera.shape) != camera.shape:  # to open an image is to decode it
                continue
            tiles: list[Tensor] = []
            with contextlib.suppress(ValueError, OSError), open_image(image, camera.plane) as reader:
                self._shapes[image] = reader.shape
                if reader.shape == camera.shape and not reader.is_slide:
                    tiles = list(self._probed(reader))  # all, or none of a damaged one
            yield from tiles

    @property
    def estimator(self) -> MapsFocus:
        """D_φ as it sees the image's pixels."""
        estimator = self.tile_restorer.prompter.estimator
        return estimator if self.binning == 1 else BinnedEstimator(estimator, self.binning)

    @property
    def kept_block_px(self) -> int:
        """Side of the blocks that `restore` hands to its sink, px."""
        stride = self.tile_px - self.overlap_px
        # Block edges on tile starts: a block then shares one row of tiles with the next instead of two.
        return max(1, self.block_px // stride) * stride

    def grid(self, reader: ImageReader) -> TileGrid:
        """The tiles of an image."""
        return TileGrid(*reader.shape, self.tile_px, self.overlap_px)

    def restore(
        self,
        reader: ImageReader,
        sink: ImageSink,
        progress: Progress | None = None,
        plan: SlidePlan | None = None,
        stopped: Callable[[], bool] = lambda: False,
        trust: TrustKeeping | None = None,
    ) -> SlideReport:
        """Restore `reader` into `sink`, block by block; the caller closes both, `sink` first.

        Args:
            reader: the image.
            sink: takes the restored blocks; those that it holds from an earlier run are not done again.
            progress: called after every tile.
            plan: what each tile needs; None runs the whole chain everywhere.
            stopped: asked after every block.
            trust: judges every restored tile; None costs nothing.

        Raises:
            RestorationStopped: `stopped` said so; the finished blocks are in the sink.
        """
        started = time.perf_counter()
        grid = self.grid(reader)
        plan = plan or plan_all(grid)
        runs = self._tile_runs(reader, plan, trust)
        blocks = list(grid.blocks(self.kept_block_px))
        earlier = {block: figures for block in blocks if (figures := sink.resume(block)) is not None}
        waiting = [block for block in blocks if block not in earlier and not runs.is_copy(block)]
        count = _Counter(sum(runs.runs(waiting).values()), progress)
        total = sum(earlier.values(), np.zeros(FIGURES))
        with WriteBehind() as behind, contextlib.closing(runs.made(waiting, count)) as made:
            for block in blocks:
                if block in earlier:
                    continue
                if runs.is_copy(block):
                    behind.begin(functools.partial(sink.copy, block, reader))
                    total += _summed(runs.own_figures(block))
                    continue
                pixels, own = next(made)
                figures = _summed(own)
                image = to_uint8(pixels[:3]).permute(1, 2, 0).contiguous().numpy()
                if trust is not None:
                    trust.cells.put(block, pixels[3:])
                behind.begin(functools.partial(sink.write, block.row, block.col, image, figures.tolist()))
                total += figures
                if stopped():
                    behind.finish()
                    raise RestorationStopped
            behind.finish()
        looked_at, distance, untouched, unreadable = total
        return SlideReport(
            *reader.shape,
            len(grid),
            float(untouched / len(grid)),
            float(distance / looked_at) if looked_at else math.nan,
            time.perf_counter() - started,
            plan.counts(),
            int(unreadable),
            binning=self.binning,
        )

    def runs(self, reader: ImageReader, plan: SlidePlan) -> dict[Kind, int]:
        """Runs of the network that a plan asks for, by kind; tiles on a block's lower edge run twice."""
        runs = self._tile_runs(reader, plan)
        blocks = self.grid(reader).blocks(self.kept_block_px)
        return runs.runs(block for block in blocks if not runs.is_copy(block))

    def untouched(self, reader: ImageReader, plan: SlidePlan) -> Callable[[Box], bool]:
        """Whether `restore` leaves every pixel of a rectangle as the source has it."""
        return self._tile_runs(reader, plan).is_copy

    def copied_tiles(self, reader: ImageReader, plan: SlidePlan) -> Iterator[Box]:
        """The tiles that start in blocks which `restore` leaves to the sink to copy."""
        runs = self._tile_runs(reader, plan)
        for block in self.grid(reader).blocks(self.kept_block_px):
            if runs.is_copy(block):
                yield from runs.own_tiles(block)

    def _tile_runs(self, reader: ImageReader, plan: SlidePlan, trust: TrustKeeping | None = None) -> TileRuns:
        run = functools.partial(self._run_restorer, gauge=trust.gauge if trust else None)
        channels = 3 + (trust.cells.layers if trust else 0)
        return TileRuns(reader, self.grid(reader), plan, self.kept_block_px, self.batch, self.device, run, channels)

    def seconds_a_tile(self, kind: Kind) -> float:
        """How long one tile of a kind takes here: the second of two runs on grey."""
        grey = torch.full((1, 3, self.tile_px, self.tile_px), 0.5, device=self.device)
        for _ in range(2):
            started = time.perf_counter()
            with torch.inference_mode():
                self._run_restorer(grey, torch.zeros(1, 2, dtype=torch.int64, device=self.device), kind)
        return time.perf_counter() - started

    def focus_map(self, reader: ImageReader, progress: Progress | None = None) -> FocusMap:
        """Signed focus map of the whole image by the defocus estimator alone, feathered like the pixels.

        Averaged down by a whole factor so that neither side has more than `FOCUS_MAP_SIDE_PX` values.
        """
        grid = self.grid(reader)
        scale = math.ceil(max(reader.shape) / FOCUS_MAP_SIDE_PX)
        height, width = (math.ceil(side / scale) for side in reader.shape)
        defocus_um = np.empty((height, width), np.float32)
        block_px = max(1, self.block_px // scale) * scale  # no value straddles two blocks
        run: RunTiles = self._run_estimator
        runs = TileRuns(reader, grid, plan_all(grid), block_px, self.batch, self.device, run, 1)
        count = _Counter(sum(runs.runs(grid.blocks(block_px)).values()), progress)
        blocks = list(grid.blocks(block_px))
        for block, made in zip(blocks, runs.made(blocks, count), strict=True):
            coarse = functional.avg_pool2d(made.pixels, scale, ceil_mode=True)[0]
            row, col = block.row // scale, block.col // scale
            defocus_um[row : row + coarse.shape[0], col : col + coarse.shape[1]] = coarse.numpy()
        return FocusMap(defocus_um, scale)

    def _run_restorer(self, image: Tensor, location: Tensor, kind: Kind, gauge: TrustGauge | None = None
                      ) -> list[TileResult]:  # fmt: skip
        network = self.tile_restorer
        whole = network.stop_after
        # Mild: P-diffusion has nothing to add. Hopeless: what it adds would be invented.
        network.stop_after = "p_former" if kind in (Kind.MILD, Kind.HOPELESS) else whole
        try:
            restoration = network.restore(image, location, self.binning)
        finally:
            network.stop_after = whole
        distances = restoration.defocus_um.tolist()
        made = restoration.restored
        if gauge is not None:
            made = torch.cat(gauge.judge(image, restoration), 1)
        results = []
        for source, restored, distance in zip(image, made, distances, strict=True):
            # Copied to a tensor of its own: a kept view would hold the whole batch.
            pixels = restored.float().cpu().clone()
            untouched = float((restored[:3] == source).all(0).float().mean())
            results.append(TileResult(pixels, TileFigures(distance, untouched)))
        return results

    def _run_estimator(self, image: Tensor, location: Tensor, kind: Kind) -> list[TileResult]:
        del location, kind  # the estimator draws no noise and has one way
        maps = self.estimator.focus_map(image).float().cpu()
        return [TileResult(one.clone(), TileFigures(float(one.mean()), 0.0)) for one in maps]


class _Counter:
    """Tells `progress` of every tile."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def __call__(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)


def _summed(figures: list[TileFigures]) -> NDArray[np.float64]:
    """Tiles that were looked at, the sum of their |defocus| and of the untouched shares, and unreadable tiles."""
    known = [abs(tile.defocus_um) for tile in figures if not math.isnan(tile.defocus_um)]
    untouched, unreadable = sum(tile.untouched for tile in figures), sum(tile.unreadable for tile in figures)
    return np.array([len(known), sum(known), untouched, unreadable], np.float64)
