"""The layers of finished blocks, averaged over cells; beside unfinished work they survive a kill as its pixels do.

    NAME.partial/trust/ROW_COL.npy     float32 (layers, rows, columns) of the block at (ROW, COL) px

A file is written under another name and renamed, and before the block's pixels: a finished block has its cells.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from bundle.slides.grid import Box
from bundle.slides.whole_files import replace_when_done


class CellStore:
    """Cells of one image.

    Args:
        shape: (height, width) px of the image.
        cell_px: side of a cell; blocks are made of whole ones.
        layers: of every cell.
        folder: keeps them on the disk; None in memory.
    """

    def __init__(self, shape: tuple[int, int], cell_px: int, layers: int, folder: Path | None = None) -> None:
        self.shape, self.cell_px, self.layers, self.folder = shape, cell_px, layers, folder
        self._held: dict[tuple[int, int], NDArray[np.float32]] = {}

    def put(self, block: Box, layers: Tensor) -> None:
        """Keep the means of a block's layers, (layers, block.height, block.width), over its cells."""
        means = functional.avg_pool2d(layers[None], self.cell_px, ceil_mode=True)[0].numpy()
        if self.folder is None:
            self._held[block.row, block.col] = means
            return
        with replace_when_done(self.folder / f"{block.row}_{block.col}.npy", overwrite=True) as file:
            np.save(file, means)

    def whole(self) -> NDArray[np.float32]:
        """The cells of the whole image, (layers, rows, columns); 0 where no block was put."""
        rows, cols = (math.ceil(side / self.cell_px) for side in self.shape)
        cells = np.zeros((self.layers, rows, cols), np.float32)
        held = dict(self._held)
        for path in [] if self.folder is None else sorted(self.folder.glob("*_*.npy")):
            begin = path.stem.split("_")
            held[int(begin[0]), int(begin[1])] = np.load(path)
        for (top, left), means in held.items():
            row, col = top // self.cell_px, left // self.cell_px
            cells[:, row : row + means.shape[1], col : col + means.shape[2]] = means
        return cells
