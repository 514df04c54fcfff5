"""Which places of a slide are worth a look: squares of the highest score that do not overlap."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bundle.slides.grid import Box


class Region(NamedTuple):
    """A place and why it was chosen."""

    box: Box  # px of level 0
    why: str
    score: float


def pick_regions(score: NDArray[np.float32], cell_px: float, shape: tuple[int, int], side_px: int, count: int,
                 why: str) -> list[Region]:
    """Squares with the highest mean score, the highest first, none over another.

    Args:
        score: of every cell, (rows, cols); NaN and 0 are never chosen.
        cell_px: side of a cell, px.
        shape: (height, width) of the slide, px.
        side_px: of a square; shorter where the slide is.
        count: squares at most.
        why: what the score means.
    """
    height, width = min(side_px, shape[0]), min(side_px, shape[1])
    known = np.nan_to_num(np.asarray(score, np.float64))
    cells = tuple(max(1, min(length, round(side / cell_px)))
                  for side, length in zip((height, width), known.shape, strict=True))  # fmt: skip
    means = ndimage.uniform_filter(known, cells, mode="constant")
    found: list[Region] = []
    while len(found) < count and means.max(initial=0) > 1e-9:
        row, col = np.unravel_index(int(means.argmax()), means.shape)
        top = int(np.clip((row + 0.5) * cell_px - height / 2, 0, shape[0] - height))
        left = int(np.clip((col + 0.5) * cell_px - width / 2, 0, shape[1] - width))
        box = Box(top, left, height, width)
        if not any(all(box.overlap(one.box)[2:]) for one in found):
            found.append(Region(box, why, float(means[row, col])))
        means[row, col] = 0
        # Whatever is centred within half a square of this one would lie over it.
        reach = [max(0, side // 2) for side in cells]
        means[max(0, row - reach[0]) : row + reach[0] + 1, max(0, col - reach[1]) : col + reach[1] + 1] = 0
    return found
