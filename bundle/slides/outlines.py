"""Regions of a coarse raster as GeoJSON that QuPath opens by dropping it on the slide: polygons in level-0 pixels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bundle.slides.whole_files import replace_when_done


class Outline(NamedTuple):
    """One region as an annotation."""

    geometry: Mapping[str, Any]  # GeoJSON
    name: str  # of its class
    colour: tuple[int, int, int]
    measurements: Mapping[str, float]


class Patch(NamedTuple):
    """One connected region of a raster."""

    row: int  # of its first cell
    col: int
    cells: NDArray[np.bool_]  # (rows, cols) from there on

    @property
    def where(self) -> tuple[slice, slice]:
        """The rectangle of the raster that holds it."""
        return slice(self.row, self.row + self.cells.shape[0]), slice(self.col, self.col + self.cells.shape[1])


def patches_of(mask: NDArray[np.bool_]) -> list[Patch]:
    """The connected regions of a mask, the largest first; cells that only touch by a corner belong to two."""
    labels, _ = ndimage.label(mask)
    found = [Patch(rows.start, cols.start, labels[rows, cols] == label)
             for label, (rows, cols) in enumerate(ndimage.find_objects(labels), 1)]  # fmt: skip
    return sorted(found, key=lambda patch: -int(patch.cells.sum()))


def geometry_of(patch: Patch, rows_px: Sequence[float], cols_px: Sequence[float]) -> dict[str, Any]:
    """The outline of a region, with its holes.

    Args:
        patch: of a raster.
        rows_px, cols_px: where the raster's cells begin, level-0 px, and where the last one ends.
    """
    from shapely import box, simplify, union_all
    from shapely.geometry import mapping

    strips = []
    for row, cells in enumerate(patch.cells, patch.row):
        steps = patch.col + np.flatnonzero(np.diff(cells.astype(np.int8), prepend=0, append=0))
        for first, last in zip(steps[::2], steps[1::2], strict=True):
            strips.append(box(cols_px[first], rows_px[row], cols_px[last], rows_px[row + 1]))
    geometry: dict[str, Any] = json.loads(json.dumps(mapping(simplify(union_all(strips), 0))))
    return geometry


def write_outlines(path: Path, outlines: Iterable[Outline], overwrite: bool) -> None:
    """Write annotations as a FeatureCollection in QuPath's form, whole or not at all."""
    features = [
        {
            "type": "Feature",
            "geometry": outline.geometry,
            "properties": {
                "objectType": "annotation",
                "classification": {"name": outline.name, "color": list(outline.colour)},
                "measurements": {name: round(float(value), 4) for name, value in outline.measurements.items()},
            },
        }
        for outline in outlines
    ]
    text = json.dumps({"type": "FeatureCollection", "features": features})
    with replace_when_done(path, overwrite) as file:
        file.write(text.encode())
