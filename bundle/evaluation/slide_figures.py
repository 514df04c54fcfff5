"""Figures of whole slides: what would be scored if the fields of a slide were one picture, and their spread.

    PSNR of a slide      from the squared errors of all its fields together, weighted by their area
    SSIM, LPIPS          the mean over its fields, weighted by their area
    mean ± deviation     over every slide and plane; the deviation is that of a sample (n - 1)

A slide above 4096 px a side is kept by `mop prepare` as several fields: only together they are the slide.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bundle.evaluation.scores import METRICS, Figures


class Spread(NamedTuple):
    """Mean and deviation of one figure over slides and planes; no deviation of a single one."""

    mean: float | None
    deviation: float | None


def slide_summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`slides`, figures of each slide at each plane, and `over_slides`, their mean and deviation by method.

    Args:
        records: of fields, all with the same planes and methods.
    """
    methods = list(records[0]["planes"][0]["methods"])
    of_slide: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        of_slide[record["slide"]].append(record)
    slides: list[dict[str, Any]] = [{"slide": slide, "fields": len(fields), "planes": [_plane(fields, place, methods)
              for place in range(len(fields[0]["planes"]))]} for slide, fields in of_slide.items()]
    figures = {name: [plane[name] for slide in slides for plane in slide["planes"]] for name in methods}
    return {"slides": slides, "over_slides": {
        name: {metric: _spread(one[metric] for one in figures[name])._asdict() for metric in METRICS}
        for name in methods}}


def _plane(fields: Sequence[dict[str, Any]], place: int, methods: list[str]) -> dict[str, Any]:
    areas = [field["height"] * field["width"] for field in fields]
    planes = [field["planes"][place] for field in fields]
    return {"defocus_um": planes[0]["defocus_um"]} | {
        name: _stitched([plane["methods"][name] for plane in planes], areas) for name in methods}


def _stitched(figures: Sequence[Figures], areas: Sequence[int]) -> Figures:
    """Figures of one picture made of parts; None where a part has none."""
    stitched: Figures = {}
    for metric in METRICS:
        values = [part[metric] for part in figures]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            stitched[metric] = None
        elif metric == "psnr":
            error = sum(area * 10 ** (-value / 10) for value, area in zip(known, areas, strict=True)) / sum(areas)
            stitched[metric] = -10 * math.log10(error)
        else:
            stitched[metric] = sum(area * value for value, area in zip(known, areas, strict=True)) / sum(areas)
    return stitched


def _spread(values: Iterable[float | None]) -> Spread:
    collected = list(values)
    known = [value for value in collected if value is not None]
    if not known or len(known) < len(collected):
        return Spread(None, None)
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


def slides_csv(summary: dict[str, Any]) -> str:
    """One line per slide, plane and method, an empty cell where nothing was measured."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["slide", "fields", "defocus_um", "method", *METRICS])
    for slide in summary["slides"]:
        for plane in slide["planes"]:
            for name in summary["over_slides"]:
                values = ["" if plane[name][metric] is None else f"{plane[name][metric]:.6f}" for metric in METRICS]
                table.writerow([slide["slide"], slide["fields"], plane["defocus_um"], name, *values])
    return text.getvalue()
