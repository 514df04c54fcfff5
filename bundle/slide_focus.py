"""The focus map of a slide as files: a picture over the tissue, outlines for QuPath, a table of tiles.

    NAME_focus.png        |defocus| of the tissue's tiles in colours, with a scale in µm
    NAME_focus.geojson    outlines of the tissue, and of its tiles by kind, in level-0 pixels
    NAME_focus.csv        one line a tile of tissue: place, kind, signed µm

The tiles' distances are those of the plan that a restoration follows (slide_plan.py): nothing is restored.
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from bundle.report import FOCUS_COLOURS
from bundle.slide_plan import Kind, SlidePlan
from bundle.slide_report.pictures import KIND_COLOURS, focus_over
from bundle.slide_report.survey import THUMBNAIL_PX
from bundle.slides.grid import TileGrid
from bundle.slides.outlines import Outline, geometry_of, patches_of, write_outlines
from bundle.slides.reader import ImageReader
from bundle.slides.tissue import TissueMask
from bundle.slides.whole_files import replace_when_done

TISSUE_COLOUR = (0, 114, 178)
COLUMNS = ("row_px", "col_px", "height_px", "width_px", "kind", "defocus_um")


def kind_name(kind: Kind) -> str:
    """As a reader would write it: `In focus`."""
    return kind.name.capitalize().replace("_", " ")


def write_slide_focus(reader: ImageReader, grid: TileGrid, plan: SlidePlan, tissue: TissueMask, files: list[Path],
                      overwrite: bool) -> None:  # fmt: skip
    """Write picture, outlines and table.

    Args:
        reader: the slide.
        grid: its tiles.
        plan: of the adaptive mode, with distances.
        tissue: of the slide.
        files: names of the three, in this order.
        overwrite: replace files of those names.
    """
    picture, outlines, table = files
    with replace_when_done(table, overwrite) as file:
        file.write(_table(grid, plan).encode())
    write_outlines(outlines, _outlines(grid, plan, tissue), overwrite)
    with replace_when_done(picture, overwrite) as file:
        _figure(reader, grid, plan).savefig(file, format="png", dpi=110)


def _starts(grid: TileGrid) -> tuple[list[int], list[int]]:
    """Where the tiles' own parts begin, px, and where the last one ends: a tile owns what its next does not share."""
    rows = [*(k * grid.stride_px for k in range(len(grid.rows))), grid.height]
    return rows, [*(k * grid.stride_px for k in range(len(grid.cols))), grid.width]


def _table(grid: TileGrid, plan: SlidePlan) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for i, j in np.argwhere(plan.kinds != Kind.BACKGROUND):
        kind = Kind(int(plan.kinds[i, j])).name.lower()
        place = (grid.rows[i], grid.cols[j], grid.tile_height, grid.tile_width)
        writer.writerow([*place, kind, f"{plan.defocus_um[i, j]:.3f}"])
    return text.getvalue()


def _outlines(grid: TileGrid, plan: SlidePlan, tissue: TissueMask) -> list[Outline]:
    cells = [
        [*(min(side, round(k * tissue.downsample)) for k in range(count)), side]
        for side, count in zip((grid.height, grid.width), tissue.mask.shape, strict=True)
    ]
    found = [Outline(geometry_of(patch, *cells), "Tissue", TISSUE_COLOUR, {}) for patch in patches_of(tissue.mask)]
    for kind, colour in KIND_COLOURS.items():
        for patch in patches_of(plan.kinds == kind):
            distance = np.abs(plan.defocus_um[patch.where][patch.cells])
            measured = {"mean |defocus|, um": float(distance.mean()), "largest |defocus|, um": float(distance.max()),
                        "tiles": float(patch.cells.sum())}  # fmt: skip
            found.append(Outline(geometry_of(patch, *_starts(grid)), kind_name(kind), colour, measured))
    return found


def _figure(reader: ImageReader, grid: TileGrid, plan: SlidePlan) -> Figure:
    scale = max(1.0, max(reader.shape) / THUMBNAIL_PX)
    limit_um = max(1.0, math.ceil(2 * float(np.nanmax(np.abs(plan.defocus_um)))) / 2)
    over = focus_over(reader.read_scaled(grid.image, scale), plan.defocus_um, limit_um, grid.stride_px, scale)
    figure = Figure(figsize=(8.5, max(2.5, min(14.0, 7 * grid.height / grid.width + 0.8))), layout="constrained",
                    facecolor="white")  # fmt: skip
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(over, extent=(0, grid.width, grid.height, 0))
    axes.set(title=reader.path.name, xlabel="px", ylabel="px")
    bar = ScalarMappable(Normalize(0, limit_um), FOCUS_COLOURS)
    figure.colorbar(bar, ax=axes, label="distance to best focus, µm (glass: none)")
    return figure
