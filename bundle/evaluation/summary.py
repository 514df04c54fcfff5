"""From the records of fields to the figures of a table: averaged over fields, then over planes.

    figures   {"psnr": dB, "ssim": …, "ssim_uniform": …, "lpips": … or None}
    group     planes that are averaged together: all of them, the defocused ones, and |defocus| of one or two planes

Every field has the same planes, so the order of averaging changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from bundle.conventions import SPACING_UM
from bundle.evaluation.scores import METRICS, Figures
from bundle.evaluation.slide_figures import slide_summary
from bundle.training.metrics import defocus_figures

HALF_PLANE_UM = SPACING_UM / 2
GROUPS = {  # |defocus| from, up to, µm
    "mean": (0.0, float("inf")),
    "mean_defocused": (HALF_PLANE_UM, float("inf")),
    "mean_08_16": (HALF_PLANE_UM, 5 * HALF_PLANE_UM),
}


def summarise(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Everything that is reported of the finished fields.

    Raises:
        ValueError: there is no record.
    """
    if not records:
        raise ValueError("a summary needs at least one finished field, got none.")
    methods = list(records[0]["planes"][0]["methods"])
    planes = []
    for index, plane in enumerate(records[0]["planes"]):
        of_fields = [record["planes"][index]["methods"] for record in records]
        averages = {method: average(figures[method] for figures in of_fields) for method in methods}
        planes.append({"defocus_um": plane["defocus_um"]} | averages)
    return {
        "planes": planes,
        **{group: _group_average(planes, methods, limits) for group, limits in GROUPS.items()},
        "fields": [_field_average(record, methods) for record in records],
        **slide_summary(records),
        "colour_shift": _colour(records),
        "defocus_estimator": _estimator(_column(records)),
        "prompt_restorer": _prompt_restorer(_column(records)),
    }


def average(figures: Iterable[Figures]) -> Figures | None:
    """Metric by metric; None where one is missing, and None of nothing."""
    collected = list(figures)
    if not collected:
        return None
    return {metric: mean_of(entry[metric] for entry in collected) for metric in METRICS}


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean, or None where a value is missing: a mean over the rest would be of another set of planes."""
    collected = list(values)
    known = [value for value in collected if value is not None]
    return sum(known) / len(known) if known and len(known) == len(collected) else None


def _group_average(
    planes: list[dict[str, Any]], methods: list[str], limits_um: tuple[float, float]
) -> dict[str, Figures | None]:
    chosen = [plane for plane in planes if limits_um[0] <= abs(plane["defocus_um"]) < limits_um[1]]
    return {method: average(plane[method] for plane in chosen) for method in methods}


def _field_average(record: dict[str, Any], methods: list[str]) -> dict[str, Any]:
    """One field over its planes: what tells a laboratory which slide fails."""
    means = {method: average(plane["methods"][method] for plane in record["planes"]) for method in methods}
    return {"name": record["name"], "slide": record["slide"], "mean": means}


def _colour(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean over all blocks and the worst block of each stage, grey levels of 255."""
    shifts = [plane["colour"] for record in records for plane in record["planes"]]
    return {
        stage: {
            "mean": sum(shift[stage]["mean"] for shift in shifts) / len(shifts),
            "max": max(shift[stage]["max"] for shift in shifts),
        }
        for stage in shifts[0]
    }


def _column(records: Sequence[dict[str, Any]]) -> Callable[[str], torch.Tensor]:
    """Access to one figure of all tiles of all planes and fields, (N,), NaN where undefined."""

    def column(name: str) -> torch.Tensor:
        tiles = (plane["tiles"].get(name, []) for record in records for plane in record["planes"])
        return torch.tensor([float("nan") if value is None else value for some in tiles for value in some])

    return column


def _estimator(column: Callable[[str], torch.Tensor]) -> dict[str, float | None] | None:
    predicted, true = column("defocus_um"), column("true_defocus_um")
    if not len(predicted):
        return None
    figures = defocus_figures(predicted, true, column("contrast"), column("true_contrast"))
    return {name: value if value == value else None for name, value in figures._asdict().items()}


def _prompt_restorer(column: Callable[[str], torch.Tensor]) -> dict[str, float] | None:
    """How far tokens are from the sharp tile's, before and after: a ratio below 1 is what R_p was trained for."""
    blurred, restored = column("blurred_tokens_mse"), column("restored_tokens_mse")
    if not len(blurred):
        return None
    before, after = float(blurred.mean()), float(restored.mean())
    return {"blurred_mse": before, "restored_mse": after, "ratio": after / before}
