"""The report of one restored slide: what was done, where, how far it can be trusted, as one HTML file.

It works from a folder, a mail or a server alike: pictures, scripts and figures lie inside, and nothing is fetched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment
from markupsafe import Markup, escape

from bundle.report import FOCUS_COLOURS, inline_png
from bundle.slide_plan import Kind, SlidePlan
from bundle.slide_report.pictures import (
    DOUBT_COLOURS,
    KIND_COLOURS,
    colour_bar,
    coloured,
    focus_histogram,
    focus_over,
    inline_jpeg,
    kinds_picture,
    laid_over,
)
from bundle.slide_report.regions import Region, pick_regions
from bundle.slide_report.survey import CELL_PX, Readable, Source, Survey
from bundle.slides.grid import TileGrid
from bundle.slides.whole_files import replace_when_done
from bundle.trust.map import TrustMap
from bundle.viewing.assets import asset, inline_scripts

TEMPLATE = Path(__file__).resolve().parent / "report.html"
REGION_PX = 640  # side of a region under the curtain
REGIONS = 4  # of each sort
LISTED = 25  # untrusted regions in the table
MEANINGS = {
    Kind.BACKGROUND: "copied",
    Kind.IN_FOCUS: "copied",
    Kind.MILD: "P-former",
    Kind.STRONG: "P-former and P-diffusion",
    Kind.HOPELESS: "P-former: too far for more",
}


# Stands in a page until the result has its name: some facts are known then alone.
PENDING = "The result was not complete when this page was written."


class Account(NamedTuple):
    """What a run says about itself."""

    result: str  # name of the file
    source: str
    mpp: float | None
    untouched: float  # share of the pixels
    seconds: Mapping[str, float]  # by step
    provenance: Mapping[str, str]


def chosen_regions(seen: Survey, grid: TileGrid, trust: TrustMap | None) -> list[Region]:
    """The worst and the most-changed places."""
    shape = (grid.height, grid.width)
    if trust is not None:
        worst = pick_regions(trust.doubt, trust.cell_px, shape, REGION_PX, REGIONS, "most doubt, grey levels")
    else:
        left = np.abs(seen.after_um)
        worst = pick_regions(left, grid.stride_px, shape, REGION_PX, REGIONS, "farthest from focus after, µm")
    return worst + pick_regions(seen.change, CELL_PX, shape, REGION_PX, REGIONS, "most changed, grey levels")


def report_page(source: Source, made: Readable, grid: TileGrid, plan: SlidePlan, seen: Survey, account: Account,
                trust: TrustMap | None = None) -> str:
    """The page; every text is escaped.

    Args:
        source: the image.
        made: the result.
        grid: of the image.
        plan: that was followed.
        seen: of both.
        account: of the run.
        trust: map, where the run judged itself.
    """
    known = np.abs(np.concatenate([seen.before_um.ravel(), seen.after_um.ravel()]))
    limit_um = max(1.0, math.ceil(2 * float(np.nanmax(known))) / 2)
    tissue = plan.kinds != Kind.BACKGROUND
    counts = plan.counts()
    kinds = [
        {"name": kind.name.lower().replace("_", " "), "count": count, "share": f"{count / plan.kinds.size:.1%}",
         "gets": MEANINGS[kind], "colour": "#{:02x}{:02x}{:02x}".format(*KIND_COLOURS.get(kind, (235, 235, 235)))}
        for kind, count in counts.items()
    ]  # fmt: skip
    focus = {
        name: inline_jpeg(focus_over(seen.before, um, limit_um, grid.stride_px, seen.scale))
        for name, um in (("before", seen.before_um), ("after", seen.after_um))
    }
    pairs = [_under_the_curtain(region, source, made) for region in chosen_regions(seen, grid, trust)]
    facts = {
        "size": f"{grid.width} × {grid.height} px" + (f", {account.mpp:.4g} µm/px" if account.mpp else ""),
        "tissue": f"{tissue.mean():.1%} of {plan.kinds.size} tiles",
        "untouched": f"{account.untouched:.1%} of the pixels",
        "mean distance to focus before": f"{np.nanmean(np.abs(seen.before_um)):.2f} µm",
        "mean distance to focus after": f"{np.nanmean(np.abs(seen.after_um)):.2f} µm",
    }
    # Markup of this package's own scripts and style; all that comes from files goes through the escaping.
    return Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        account=account,
        pending=PENDING,
        facts=facts,
        kinds=kinds,
        before=inline_jpeg(seen.before),
        after=inline_jpeg(seen.after),
        kinds_picture=inline_jpeg(kinds_picture(seen.before, plan.kinds, grid.stride_px, seen.scale)),
        focus=focus,
        focus_bar=inline_png(colour_bar(limit_um, FOCUS_COLOURS)),
        limit_um=f"{limit_um:g}",
        histogram=focus_histogram(seen.before_um, seen.after_um, limit_um),
        probed=seen.probed,
        pairs=pairs,
        trust=None if trust is None else _trust_context(trust, seen),
        seconds={name: f"{seconds:.1f} s" for name, seconds in account.seconds.items()},
        style=Markup(asset("curtain.css")),
        scripts=Markup(inline_scripts()),
    )


def write_report(path: Path, page: str, overwrite: bool) -> None:
    """Write a page, whole or not at all."""
    with replace_when_done(path, overwrite) as file:
        file.write(page.encode())


def complete_report(path: Path, said: Sequence[str]) -> None:
    """Let a page of `write_report` say what was known only once the result was written."""
    page = path.read_text(encoding="utf-8").replace(PENDING, str(escape(" ".join(said))), 1)
    write_report(path, page, overwrite=True)


def _under_the_curtain(region: Region, source: Readable, made: Readable) -> dict[str, Any]:
    box = region.box
    return {
        "why": region.why,
        "score": f"{region.score:.2f}",
        "place": f"row {box.row}, column {box.col}",
        "before": inline_jpeg(source.read(*box), 90),
        "after": inline_jpeg(made.read(*box), 90),
    }


def _trust_context(trust: TrustMap, seen: Survey) -> dict[str, Any]:
    regions = trust.regions()
    limit = max(1.5 * trust.limit, float(np.percentile(trust.doubt, 99.5)))
    picture = laid_over(seen.before, coloured(trust.doubt, limit, DOUBT_COLOURS), trust.doubt > 0, trust.cell_px,
                        seen.scale)  # fmt: skip
    judged = int((trust.doubt > 0).sum())
    rows = [
        {"place": f"row {region.box.row}, column {region.box.col}",
         "size": f"{region.box.width} × {region.box.height} px", "doubt": f"{region.doubt:.1f}",
         "signs": [f"{value:.1f}" for value in region.signs.values()], "reverted": f"{region.reverted:.0%}"}
        for region in regions[:LISTED]
    ]  # fmt: skip
    return {
        "picture": inline_jpeg(picture),
        "bar": inline_png(colour_bar(limit, DOUBT_COLOURS)),
        "top": f"{limit:.0f}",
        "limit": f"{trust.limit:g}",
        "count": len(regions),
        "share": f"{trust.untrusted.sum() / max(1, judged):.1%}",
        "rows": rows,
        "fallback": {"coarse": "the P-former's", "input": "the input's"}.get(trust.fallback, ""),
        "has_spread": trust.has_spread,
    }
