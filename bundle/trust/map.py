"""The trust map of a slide: doubt about every cell, the regions above the limit, and both as files.

    NAME_trust.tif        float32 layers of cells: reblur, spread, edges, doubt (grey levels of 255), reverted (share)
    NAME_trust.geojson    the untrusted regions as QuPath's annotations, in level-0 pixels
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray

from bundle.slides.files import file_beside
from bundle.slides.grid import Box
from bundle.slides.outlines import Outline, geometry_of, patches_of, write_outlines
from bundle.slides.whole_files import replace_when_done
from bundle.trust.gauge import SIGNS, TrustGauge

COLOUR = (213, 94, 0)  # of untrusted regions: vermilion, seen by the colour-blind too


class Untrusted(NamedTuple):
    """A connected region of doubt above the limit."""

    box: Box  # around it, px of level 0
    cells: int
    doubt: float  # mean, grey levels of 255
    signs: dict[str, float]  # mean of each, grey levels of 255
    reverted: float  # share of its pixels


class TrustMap(NamedTuple):
    """Doubt about a result by cells."""

    signs: NDArray[np.float32]  # (3, rows, columns), `SIGNS`, grey levels of 255
    doubt: NDArray[np.float32]  # (rows, columns), expected error, grey levels of 255; 0 where pixels are the input's
    reverted: NDArray[np.float32]  # (rows, columns), share of the pixels
    cell_px: int
    shape: tuple[int, int]  # px of the image
    limit: float
    has_spread: bool
    fallback: str

    @property
    def untrusted(self) -> NDArray[np.bool_]:
        """Cells above the limit."""
        return self.doubt > self.limit

    def edges_px(self) -> tuple[list[int], list[int]]:
        """Where cells begin, px, and where the last one ends: rows, columns."""
        rows, cols = (
            [*range(0, side, self.cell_px), side] for side in self.shape
        )
        return rows, cols

    def regions(self) -> list[Untrusted]:
        """The untrusted regions, the largest first."""
        rows_px, cols_px = self.edges_px()
        found = []
        for patch in patches_of(self.untrusted):
            rows, cols = patch.where
            top, left = rows_px[rows.start], cols_px[cols.start]
            box = Box(top, left, rows_px[rows.stop] - top, cols_px[cols.stop] - left)
            doubt, reverted = (float(layer[rows, cols][patch.cells].mean()) for layer in (self.doubt, self.reverted))
            signs = {name: float(sign[rows, cols][patch.cells].mean())
                     for name, sign in zip(SIGNS, self.signs, strict=True)}  # fmt: skip
            found.append(Untrusted(box, int(patch.cells.sum()), doubt, signs, reverted))
        return found


def trust_map(gauge: TrustGauge, cells: NDArray[np.float32], cell_px: int, shape: tuple[int, int]) -> TrustMap:
    """The map of cells (4, rows, columns) in the order of `gauge.LAYERS`."""
    signs = 255 * cells[:3]
    doubt = gauge.doubt(torch.from_numpy(cells[None, :3]))[0].numpy()
    has_spread = bool(signs[SIGNS.index("spread")].any())
    return TrustMap(signs, doubt, cells[3], cell_px, shape, gauge.limit, has_spread, gauge.fallback)


def trust_files(result: Path) -> list[Path]:
    """The names of both files beside a result."""
    return [file_beside(result, "trust.tif"), file_beside(result, "trust.geojson")]


def write_trust(trust: TrustMap, mpp: float, files: list[Path], overwrite: bool) -> None:
    """Write both files of `trust_files`."""
    numbers, outlines = files
    layers = np.stack([*trust.signs, trust.doubt, trust.reverted])
    density = 1e4 / (mpp * trust.cell_px)
    with replace_when_done(numbers, overwrite) as file:
        tifffile.imwrite(file, layers, photometric="minisblack", metadata=None, software="MoP",
                         description=f"{', '.join(SIGNS)}, doubt (grey levels of 255), reverted (share); "
                                     f"cells of {trust.cell_px} px; limit {trust.limit:g}",
                         resolution=(density, density), resolutionunit="CENTIMETER")  # fmt: skip
    write_outlines(outlines, _outlines(trust), overwrite)


def _outlines(trust: TrustMap) -> list[Outline]:
    rows_px, cols_px = trust.edges_px()
    name = f"Untrusted, {trust.fallback}'s pixels" if trust.fallback else "Untrusted"
    return [
        Outline(geometry_of(patch, rows_px, cols_px), name, COLOUR,
                {"doubt, grey levels": region.doubt, **{f"{sign}, grey levels": x for sign, x in region.signs.items()},
                 "reverted, share": region.reverted})
        for patch, region in zip(patches_of(trust.untrusted), trust.regions(), strict=True)
    ]  # fmt: skip
