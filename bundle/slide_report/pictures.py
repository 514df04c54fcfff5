"""Pictures of the report: colours over a pale thumbnail, their legends, the histogram, all as `data:` addresses."""

from __future__ import annotations

import base64
import io

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from bundle.report import FOCUS_COLOURS
from bundle.slide_plan import Kind

KIND_COLOURS = {
    Kind.IN_FOCUS: (0, 158, 115),
    Kind.MILD: (240, 228, 66),
    Kind.STRONG: (230, 120, 0),
    Kind.HOPELESS: (120, 60, 160),
}  # of Okabe and Ito: told apart by the colour-blind
DOUBT_COLOURS = "cividis"


def inline_jpeg(picture: NDArray[np.uint8], quality: int = 88) -> str:
    """(H, W, 3) uint8 -> a `data:` address that holds a JPEG."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def laid_over(thumbnail: NDArray[np.uint8], colours: NDArray[np.uint8], shown: NDArray[np.bool_], cell_px: float,
              scale: float) -> NDArray[np.uint8]:
    """Coloured cells over a pale grey thumbnail.

    Args:
        thumbnail: (h, w, 3).
        colours: of the cells, (rows, cols, 3).
        shown: which cells have a colour, (rows, cols).
        cell_px: side of a cell, px of the slide.
        scale: px of the slide per px of the thumbnail.
    """
    rows, cols = (
        np.minimum((np.arange(length) + 0.5) * scale / cell_px, count - 1).astype(int)
        for length, count in zip(thumbnail.shape[:2], shown.shape, strict=True)
    )
    grey = thumbnail.mean(axis=2, keepdims=True)
    pale = np.repeat(0.5 * grey + 127, 3, axis=2)
    over = 0.35 * grey + 0.65 * colours[rows[:, None], cols[None, :]]
    return np.where(shown[rows[:, None], cols[None, :], None], over, pale).astype(np.uint8)


def coloured(values: NDArray[np.float32], limit: float, name: str) -> NDArray[np.uint8]:
    """Values 0..limit as colours of a matplotlib map, (..., 3) uint8; NaN is black."""
    share = np.clip(np.nan_to_num(values) / limit, 0, 1)
    return np.ascontiguousarray(colormaps[name](share, bytes=True)[..., :3])


def colour_bar(limit: float, name: str) -> NDArray[np.uint8]:
    """The scale of `coloured` from 0 to `limit`, (14, 240, 3)."""
    return coloured(np.repeat(np.linspace(0, limit, 240, dtype=np.float32)[None], 14, axis=0), limit, name)


def kinds_picture(thumbnail: NDArray[np.uint8], kinds: NDArray[np.uint8], cell_px: float, scale: float
                  ) -> NDArray[np.uint8]:  # fmt: skip
    """Tiles in the colour of their kind; glass stays pale."""
    table = np.array([KIND_COLOURS.get(kind, (0, 0, 0)) for kind in Kind], np.uint8)
    return laid_over(thumbnail, table[kinds], kinds != Kind.BACKGROUND, cell_px, scale)


def focus_over(thumbnail: NDArray[np.uint8], defocus_um: NDArray[np.float32], limit_um: float, cell_px: float,
               scale: float) -> NDArray[np.uint8]:  # fmt: skip
    """Distance to focus over the thumbnail; tiles without one stay pale."""
    colours = coloured(np.abs(defocus_um), limit_um, FOCUS_COLOURS)
    return laid_over(thumbnail, colours, np.isfinite(defocus_um), cell_px, scale)


def focus_histogram(before_um: NDArray[np.float32], after_um: NDArray[np.float32], limit_um: float) -> str:
    """Share of the tissue's tiles by distance to focus, before and after, as an inline PNG."""
    figure = Figure(figsize=(6.4, 3.0), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    steps = np.linspace(0, limit_um, 21).tolist()
    for values, name, colour in ((before_um, "before", "#9a9a9a"), (after_um, "after", "#0072b2")):
        known = np.abs(values[np.isfinite(values)])
        weights = np.full(len(known), 100 / max(1, len(known)))
        axes.hist(np.minimum(known, limit_um), steps, weights=weights, alpha=0.6, label=name, color=colour)
    axes.set(xlabel="distance to best focus, µm", ylabel="% of the tissue's tiles")
    axes.legend()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
