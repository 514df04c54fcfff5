"""What each tile of a slide needs, decided before the restoring networks run.

    slide --tissue--> mask --estimator at every few tiles--> |defocus| --thresholds--> one kind a tile

    background   no tissue                                        copied
    in_focus     |defocus| <  in_focus_um                         copied
    mild         |defocus| <  strong_um                           P-former
    strong       |defocus| <= hopeless_um                         P-former and P-diffusion
    hopeless     beyond what training saw                         P-former, and counted in the report
"""

from __future__ import annotations

from collections import Counter
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from bundle.beside import ReadAhead
from bundle.conventions import from_uint8
from bundle.progress import Progress
from bundle.slides.grid import Box, TileGrid
from bundle.slides.reader import ImageReader
from bundle.slides.tissue import find_tissue
from bundle.slides.whole_files import replace_when_done

MODES = ("full", "coarse", "adaptive")


class MapsFocus(Protocol):
    """Whatever tells how far each place of a tile is out of focus: D_φ, on the image's pixels or binned ones."""

    def focus_map(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> signed distances (B, 1, H, W), µm."""


class NoTissueError(ValueError):
    """A slide that shows no tissue: a copy that claims to be restored would be the worst answer."""


class Kind(IntEnum):
    """What a tile needs."""

    BACKGROUND = 0
    IN_FOCUS = 1
    MILD = 2
    STRONG = 3
    HOPELESS = 4


COPIED = (Kind.BACKGROUND, Kind.IN_FOCUS)


class SlidePlan(NamedTuple):
    """One kind for every tile of a grid, by tile row and tile column."""

    kinds: NDArray[np.uint8]  # (tile rows, tile columns) of `Kind`
    defocus_um: NDArray[np.float32]  # signed; NaN where it was not estimated

    def counts(self) -> dict[Kind, int]:
        """Tiles of each kind."""
        found = Counter(self.kinds.ravel().tolist())
        return {kind: found[kind] for kind in Kind}

    def save(self, path: Path) -> None:
        """Write the plan, whole or not at all."""
        with replace_when_done(path, overwrite=True) as file:
            np.savez(file, kinds=self.kinds, defocus_um=self.defocus_um)

    @classmethod
    def load(cls, path: Path) -> SlidePlan:
        """A plan that `save` wrote."""
        with np.load(path) as held:
            return cls(held["kinds"], held["defocus_um"])


def plan_all(grid: TileGrid) -> SlidePlan:
    """The whole chain on every tile, background too: for fields that were chosen by hand."""
    shape = (len(grid.rows), len(grid.cols))
    return SlidePlan(np.full(shape, Kind.STRONG, np.uint8), np.full(shape, np.nan, np.float32))


class SlidePlanner:
    """Sorts the tiles of a slide.

    Args:
        in_focus_um: below this distance a tile is in focus.
        strong_um: from this distance on a tile gets the whole chain.
        hopeless_um: beyond this distance, which training never saw, the whole chain would invent.
        stride: the estimator looks at every so-manieth tile of a row and a column; the others take the nearest's word.

    Raises:
        ValueError: the distances do not rise, or the stride is not positive.
    """

    def __init__(self, in_focus_um: float = 0.4, strong_um: float = 1.2, hopeless_um: float = 5.0, stride: int = 2
                 ) -> None:  # fmt: skip
        if not 0 <= in_focus_um <= strong_um <= hopeless_um:
            distances = f"{in_focus_um}, {strong_um}, {hopeless_um}"
            raise ValueError(f"0 <= in_focus_um <= strong_um <= hopeless_um must hold, got {distances}.")
        if stride < 1:
            raise ValueError(f"stride must be positive, got {stride}.")
        self.in_focus_um, self.strong_um, self.hopeless_um, self.stride = in_focus_um, strong_um, hopeless_um, stride

    def plan(self, reader: ImageReader, grid: TileGrid, mode: str, estimator: MapsFocus,
             device: torch.device, progress: Progress | None = None,
             most_probes: int | None = None) -> SlidePlan:  # fmt: skip
        """The plan of a slide.

        Args:
            reader: the slide.
            grid: its tiles.
            mode: full (tissue gets the whole chain), coarse (tissue gets the P-former) or adaptive (by distance).
            estimator: D_φ, asked in adaptive mode only.
            device: of the estimator.
            progress: told of every tile that the estimator looks at.
            most_probes: the estimator looks at no more tiles than this, one in every part of the tissue; None: at all
                of its raster.

        Raises:
            ValueError: `mode` is unknown.
            NoTissueError: the slide has none.
        """
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode}.")
        mask = find_tissue(reader)
        tissue = np.array(
            [[mask.touches(Box(row, col, grid.tile_height, grid.tile_width)) for col in grid.cols] for row in grid.rows]
        )
        if not tissue.any():
            name = reader.path.name
            raise NoTissueError(f"a slide must show tissue, none was found in {name}: look at it in a viewer.")
        kinds = np.where(tissue, Kind.MILD if mode == "coarse" else Kind.STRONG, Kind.BACKGROUND).astype(np.uint8)
        if mode != "adaptive":
            return SlidePlan(kinds, np.full(tissue.shape, np.nan, np.float32))
        probes = self._probes(tissue, most_probes)
        defocus_um = self._estimated(reader, grid, tissue, probes, estimator, device, progress)
        steps = np.array([self.in_focus_um, self.strong_um, np.nextafter(self.hopeless_um, np.inf)])
        by_distance = Kind.IN_FOCUS + np.digitize(np.abs(defocus_um), steps)
        return SlidePlan(np.where(tissue, by_distance, kinds).astype(np.uint8), defocus_um)

    def _probes(self, tissue: NDArray[np.bool_], most: int | None) -> list[tuple[int, int]]:
        """Places of the tiles that the estimator looks at: on a raster, and one of every islet beside it."""
        places = np.argwhere(tissue)
        probes = [(int(i), int(j)) for i, j in places
                  if (i % self.stride == 0 and j % self.stride == 0) or not _seen(tissue, int(i), int(j), self.stride)]
        side = self.stride
        while most is not None and len(probes) > most:
            side += max(1, side // 4)  # at last a square is as large as the slide
            probes = _one_of_each_square(places, side)
        return probes

    def _estimated(self, reader: ImageReader, grid: TileGrid, tissue: NDArray[np.bool_],
                   probes: list[tuple[int, int]], estimator: MapsFocus, device: torch.device,
                   progress: Progress | None) -> NDArray[np.float32]:  # fmt: skip
        """Signed defocus of tissue tiles, µm; NaN elsewhere."""
        probed = np.full(tissue.shape, np.nan, np.float32)
        tiles = [Box(grid.rows[i], grid.cols[j], grid.tile_height, grid.tile_width) for i, j in probes]
        with ReadAhead(lambda tile: reader.read(*tile), tiles) as ahead:
            for done, (place, tile) in enumerate(zip(probes, tiles, strict=True), 1):
                pixels = torch.from_numpy(ahead.take(tile))
                if not reader.damaged(tile):
                    image = from_uint8(pixels.permute(2, 0, 1)[None].contiguous().to(device))
                    with torch.inference_mode():
                        probed[place] = float(estimator.focus_map(image).mean())
                if progress is not None:
                    progress(done, len(tiles))
        # Each tile takes the word of the nearest one that was looked at.
        nearest = ndimage.distance_transform_edt(np.isnan(probed), return_distances=False, return_indices=True)
        return np.where(tissue, probed[tuple(nearest)], np.float32(np.nan)).astype(np.float32)


def _one_of_each_square(places: NDArray[np.int64], side: int) -> list[tuple[int, int]]:
    """Of places (N, 2) the one in the middle of those that share a square of `side` x `side`, in reading order."""
    _, square = np.unique(places // side, axis=0, return_inverse=True)
    square = square.ravel()
    middle = np.stack([np.bincount(square, along) for along in places.T], 1) / np.bincount(square)[:, None]
    order = np.lexsort((np.square(places - middle[square]).sum(1), square))
    chosen = order[np.unique(square[order], return_index=True)[1]]
    return [(int(i), int(j)) for i, j in places[np.sort(chosen)]]


def _seen(tissue: NDArray[np.bool_], i: int, j: int, stride: int) -> bool:
    """Whether a tile of the raster within a stride of (i, j) shows tissue: an islet beside it is looked at itself."""
    rows, cols = ([at for at in (k // stride * stride, k // stride * stride + stride) if at < min(k + stride, count)]
                  for k, count in zip((i, j), tissue.shape, strict=True))  # fmt: skip
    return any(tissue[r, c] for r in rows for c in cols)
