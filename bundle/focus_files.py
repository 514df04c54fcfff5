"""A focus map as files: a coloured picture with its scale in µm, and the signed numbers as float32 TIFF."""

from __future__ import annotations

from pathlib import Path

import tifffile
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from bundle.report import FOCUS_COLOURS, focus_limit_um, focus_picture
from bundle.slide_restoration import FocusMap
from bundle.slides.files import file_beside
from bundle.slides.whole_files import replace_when_done


def focus_results(image: Path, output: Path) -> list[Path]:
    """The names that may be written for an image: NAME_focus.png, .tif, and of a slide .png, .geojson, .csv."""
    return [file_beside(output / image.name, f"focus.{kind}") for kind in ("png", "tif", "geojson", "csv")]


def focus_figure(focus: FocusMap, title: str) -> Figure:
    """The map, |defocus| in colours, with a colour bar in µm; axes count pixels of the image."""
    limit_um = focus_limit_um(focus.defocus_um)
    height, width = focus.defocus_um.shape
    figure = Figure(
        figsize=(7.5, max(2.5, min(15.0, 6 * height / width + 0.8))), layout="constrained", facecolor="white"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    extent = (0, width * focus.scale, height * focus.scale, 0)
    axes.imshow(focus_picture(focus.defocus_um, limit_um), extent=extent, interpolation="nearest")
    axes.set(title=title, xlabel="px", ylabel="px")
    scale = ScalarMappable(Normalize(0, limit_um), FOCUS_COLOURS)
    figure.colorbar(scale, ax=axes, label="distance to best focus, µm")
    return figure


def write_focus(focus: FocusMap, mpp: float | None, title: str, results: list[Path], overwrite: bool) -> None:
    """Write picture and numbers.

    Args:
        focus: the map; its sign goes to the TIFF alone: positive above best focus.
        mpp: µm per image pixel, or None.
        title: of the picture.
        results: picture and numbers.
        overwrite: replace files of those names.
    """
    picture, numbers = results
    density = None if mpp is None else 1e4 / (mpp * focus.scale)
    resolution = {} if density is None else {"resolution": (density, density), "resolutionunit": "CENTIMETER"}
    with replace_when_done(numbers, overwrite) as file:
        tifffile.imwrite(file, focus.defocus_um, description="defocus, um", metadata=None, software="MoP", **resolution)
    with replace_when_done(picture, overwrite) as file:
        focus_figure(focus, title).savefig(file, format="png", dpi=110)
