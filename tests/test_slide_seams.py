"""No seams: on a slide made from one repeated field, tile and block borders look like everything else.

The stand-in network errs as networks do: its brightness wavers from tile to tile, and it draws noise.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bundle.p_diffusion.noise import noise_at
from bundle.slide_restoration import SlideRestorer
from bundle.slides.grid import Box
from bundle.slides.pyramid import Record
from bundle.slides.reader import ImageReader, SlideFacts
from bundle.slides.writer import RasterSink

TILE, OVERLAP, BLOCK = 64, 16, 160  # tiles begin every 48 px, blocks every 144 px
PERIOD, SHAPE = 20, (336, 400)  # px; the period shares no factor with the stride but 4


class Result(NamedTuple):
    restored: Tensor
    defocus_um: Tensor


class Wavering(nn.Module):
    """Half the image, an error of its own for each tile, and noise."""

    def __init__(self, noise_per_tile: bool) -> None:
        super().__init__()
        self.noise_per_tile, self.stop_after = noise_per_tile, "p_diffusion"

    def binning_of(self, tiles: Iterable[Tensor], camera: object = None) -> int:
        return 1

    def restore(self, image: Tensor, location: Tensor, binning: int = 1) -> Result:
        wavers = torch.tensor([0.06 * (-1) ** (row // 48 + col // 48) for row, col in location.tolist()])
        seed = int(location.sum()) if self.noise_per_tile else 0
        noise = noise_at(location, *image.shape[-2:], seed=seed, draw=1)
        return Result(0.25 + image * 0.5 + wavers[:, None, None, None] + 0.03 * noise, torch.zeros(len(image)))


class Repeated(ImageReader):
    """One field, side by side and below each other."""

    def __init__(self) -> None:
        super().__init__(Path("repeated.png"), SHAPE, SlideFacts())
        field = np.random.default_rng(2).integers(100, 156, (PERIOD, PERIOD, 3), np.uint8)
        self.pixels = np.tile(field, (SHAPE[0] // PERIOD + 1, SHAPE[1] // PERIOD + 1, 1))[: SHAPE[0], : SHAPE[1]]

    def _read(self, box: Box, level: int) -> np.ndarray:
        return self.pixels[box.row : box.bottom, box.col : box.right].copy()

    def close(self) -> None:
        pass


class Figures(NamedTuple):
    """Statistics where tiles or blocks meet, relative to those elsewhere; 1 is no seam."""

    step: float  # squared difference of neighbouring columns, across the borders of tiles
    noise: float  # variance of what the network added, where tiles overlap
    block_step: float  # as `step`, across the borders of blocks


def figures(folder: Path, overlap_px: int, noise_per_tile: bool) -> Figures:
    reader, sink = Repeated(), RasterSink(folder / "never.png", SHAPE, Record("a"), overwrite=False)
    restorer = SlideRestorer(Wavering(noise_per_tile), TILE, overlap_px, BLOCK)
    restorer.restore(reader, sink)
    added = sink._pixels.astype(float) - 255 * 0.25 - reader.pixels * 0.5
    steps = (np.diff(added, axis=1) ** 2).mean(axis=(0, 2))  # by column
    grid = restorer.grid(reader)
    borders = np.unique([edge for col in grid.cols[1:-1] for edge in (col - 1, col + overlap_px - 1)])
    away = np.setdiff1d(np.arange(60, 320), np.concatenate([borders + k for k in range(-2, 3)]))
    blocks = np.arange(restorer.kept_block_px, 320, restorer.kept_block_px) - 1
    fine = added - np.stack([np.convolve(line, np.ones(9) / 9, "same") for line in added.mean(axis=2)])[..., None]
    shared = np.zeros(SHAPE[1], bool)
    for col in grid.cols[1:-1]:
        shared[col + 4 : col + 12] = True
    shared[320:] = False
    lone = np.setdiff1d(np.arange(70, 310), np.flatnonzero(shared | np.roll(shared, 6) | np.roll(shared, -6)))
    by_column = fine.var(axis=(0, 2))
    return Figures(
        steps[borders].mean() / steps[away].mean(),
        by_column[shared].mean() / by_column[lone].mean(),
        steps[blocks].mean() / steps[away].mean(),
    )


def test_borders_of_tiles_and_blocks_look_like_everything_else(tmp_path: Path) -> None:
    """A grid over the slide is the first thing a pathologist sees, and the last thing he trusts."""
    found = figures(tmp_path, OVERLAP, noise_per_tile=False)
    assert all(0.85 < figure < 1.15 for figure in found), found


def test_without_feathering_the_figures_show_the_seams(tmp_path: Path) -> None:
    """A test that cannot see seams proves nothing."""
    found = figures(tmp_path, 0, noise_per_tile=False)
    assert found.step > 1.3 and found.block_step > 1.3, found


def test_with_noise_of_each_tile_the_figures_show_the_overlaps(tmp_path: Path) -> None:
    """Two noises averaged are smoother than one: stripes along every border."""
    found = figures(tmp_path, OVERLAP, noise_per_tile=True)
    assert found.noise < 0.8, found

