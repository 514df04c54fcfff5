"""Figures and the HTML page of a restoration: panels side by side, the focus map with its scale, a table of figures.

The page holds its pictures as base64, so that it opens from a folder, a mail or a server alike.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

FOCUS_COLOURS = "magma"  # dark in focus, bright far out of it; ordered in lightness too
FRAME = "#ffd400"  # of the enlarged part

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .3rem .9rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 1rem; }
figure { margin: 0; } figure img { width: 100%; display: block; } figcaption { font-size: .9rem; padding-top: .3rem; }
.curtain { position: relative; max-width: 768px; } .curtain img { width: 100%; display: block; }
.curtain .over { position: absolute; inset: 0; clip-path: inset(0 50% 0 0); }
.curtain input { width: 100%; margin: .5rem 0; }
footer { margin-top: 3rem; font-size: .85rem; color: #555; }
"""


class Panel(NamedTuple):
    """One picture of a report."""

    title: str
    picture: NDArray[np.uint8]  # (H, W, 3) RGB
    caption: str = ""


class Table(NamedTuple):
    """Rows of ready-made text; the first column names the row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def focus_limit_um(focus_um: NDArray[np.float32]) -> float:
    """End of the focus map's scale, µm: the largest distance to best focus, rounded up to half a µm, at least 1 µm."""
    return max(1.0, float(np.ceil(np.abs(focus_um).max() * 2) / 2))


def focus_picture(focus_um: NDArray[np.float32], limit_um: float) -> NDArray[np.uint8]:
    """Distance to best focus as colours: (H, W) µm, either sign -> (H, W, 3) uint8; `limit_um` is the brightest.

    Raises:
        ValueError: the map is not (H, W), holds NaN, or `limit_um` is not positive.
    """
    if focus_um.ndim != 2 or not bool(np.isfinite(focus_um).all()):
        raise ValueError(f"a focus map must be finite with shape (H, W), got shape {focus_um.shape}.")
    if limit_um <= 0:
        raise ValueError(f"limit_um must be positive, got {limit_um}.")
    colours = colormaps[FOCUS_COLOURS](np.clip(np.abs(focus_um) / limit_um, 0, 1), bytes=True)
    return np.ascontiguousarray(colours[..., :3])


def comparison_figure(panels: Sequence[Panel], focus_um: NDArray[np.float32], detail: tuple[int, int, int]) -> Figure:
    """Panels side by side, the focus map after the first, and one detail of each enlarged below.

    Args:
        panels: pictures of one size, (H, W, 3); the first is the input.
        focus_um: distance to best focus, (H, W), µm, either sign.
        detail: (row, col, side) of the enlarged part, px.

    Returns:
        A figure of 2 rows and `len(panels) + 1` columns; `save_figure` writes it.

    Raises:
        ValueError: the pictures differ in size or the detail does not lie inside.
    """
    row, col, side = detail
    sizes = {panel.picture.shape[:2] for panel in panels} | {focus_um.shape}
    if len(sizes) != 1:
        raise ValueError(f"all panels and the focus map must have one size, got {sorted(sizes)}.")
    height, width = next(iter(sizes))
    if min(row, col) < 0 or side < 1 or row + side > height or col + side > width:
        raise ValueError(f"the detail must lie inside {height} x {width} px, got {detail}.")
    limit_um = focus_limit_um(focus_um)
    focus = Panel("focus map, µm from best focus", focus_picture(focus_um, limit_um))
    columns = [panels[0], focus, *panels[1:]]
    figure = Figure(figsize=(3.1 * len(columns), 6.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(columns), squeeze=False)
    for place, panel in enumerate(columns):
        _show(axes[0, place], panel.picture, f"{panel.title}\n{panel.caption}")
        corner = (col - 0.5, row - 0.5)
        axes[0, place].add_patch(_frame(corner, side))
        _show(axes[1, place], panel.picture[row : row + side, col : col + side], "")
    scale = ScalarMappable(Normalize(0, limit_um), FOCUS_COLOURS)
    figure.colorbar(scale, ax=axes[1, 1], location="bottom", shrink=0.9, label="µm")
    return figure


def save_figure(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, dpi=dpi)


def save_picture(picture: NDArray[np.uint8], path: Path) -> None:
    """Write (H, W, 3) uint8 as PNG, without loss."""
    Image.fromarray(picture).save(path)


def inline_png(picture: NDArray[np.uint8]) -> str:
    """(H, W, 3) uint8 -> a `data:` address that holds the PNG itself."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def scale_picture(limit_um: float, width_px: int = 320, height_px: int = 18) -> NDArray[np.uint8]:
    """The focus map's scale from 0 to `limit_um`, (height_px, width_px, 3) uint8."""
    ramp = np.linspace(0, limit_um, width_px, dtype=np.float32)
    return focus_picture(np.repeat(ramp[None], height_px, axis=0), limit_um)


def html_page(title: str, opening: str, panels: Sequence[Panel], focus_um: NDArray[np.float32],
              tables: Mapping[str, Table], curtain: tuple[str, str]) -> str:
    """The report as one self-contained HTML page.

    Args:
        title: heading.
        opening: one paragraph below it.
        panels: pictures of one size; the first is the input.
        focus_um: distance to best focus, (H, W), µm, either sign.
        tables: heading -> table.
        curtain: titles of the two panels under the movable curtain.

    Returns:
        HTML; every text is escaped.

    Raises:
        KeyError: no panel bears a title of `curtain`.
    """
    by_title = {panel.title: panel for panel in panels}
    left, right = by_title[curtain[0]], by_title[curtain[1]]
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(opening)}</p>"]
    for heading, table in tables.items():
        parts.append(f"<h2>{html.escape(heading)}</h2>{html_table(table)}")
    parts.append(f"<h2>{html.escape(left.title)} | {html.escape(right.title)}: move the slider</h2>")
    parts.append(_html_curtain(left, right))
    parts.append('<h2>Side by side</h2><div class="panels">')
    parts.append(_html_panel(panels[0]))
    parts.append(_html_focus(focus_um))
    parts += [_html_panel(panel) for panel in panels[1:]]
    parts.append("</div><footer>A restored image is an estimate. Not for primary diagnosis.</footer>")
    return html_document(title, parts)


def html_document(title: str, parts: Sequence[str]) -> str:
    """A whole page in the style of all reports; `parts` are HTML already."""
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
            f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n")


def _show(axes: Axes, picture: NDArray[np.uint8], title: str) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def _frame(corner: tuple[float, float], side: int) -> Rectangle:
    return Rectangle(corner, side, side, fill=False, edgecolor=FRAME, linewidth=1.5)


def html_table(table: Table) -> str:
    """A table as HTML; every text is escaped."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in table.rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _html_panel(panel: Panel) -> str:
    text = html.escape(f"{panel.title}: {panel.caption}" if panel.caption else panel.title)
    return f'<figure><img src="{inline_png(panel.picture)}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _html_focus(focus_um: NDArray[np.float32]) -> str:
    limit_um = focus_limit_um(focus_um)
    picture, scale = inline_png(focus_picture(focus_um, limit_um)), inline_png(scale_picture(limit_um))
    return (f'<figure><img src="{picture}" alt="focus map"><figcaption>focus map, µm from best focus: '
            f'0 <img src="{scale}" alt="scale" style="display:inline;width:40%;height:.8em"> {limit_um:g} µm'
            "</figcaption></figure>")


def _html_curtain(left: Panel, right: Panel) -> str:
    # The upper picture is cut at the slider; without scripts both stay visible, half and half.
    move = "this.parentElement.querySelector('.over').style.clipPath='inset(0 '+(100-this.value)+'% 0 0)'"
    return (f'<div class="curtain"><div style="position:relative"><img src="{inline_png(right.picture)}" '
            f'alt="{html.escape(right.title)}"><img class="over" src="{inline_png(left.picture)}" '
            f'alt="{html.escape(left.title)}"></div><input type="range" min="0" max="100" value="50" '
            f'aria-label="curtain" oninput="{move}"></div>')
