"""report.html of a dataset: per slide the depth histogram, the best and the worst field, shifts, what was left out.

The best field of a slide keeps the largest share of its patches, among equals the one whose planes agree best; the
worst is the other end of the same order.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bundle.data.splits import SECTIONS, natural_order
from bundle.preparation.field import HISTOGRAM_BINS, FieldFacts
from bundle.preparation.patches import REASONS
from bundle.report import Table, html_document, html_table

Fields = Mapping[str, FieldFacts]


def report_page(folder: Path, facts: Fields, sections: Mapping[str, str], failures: Sequence[str]) -> str:
    """The page as HTML that holds its pictures.

    Args:
        folder: of the fields.
        facts: field name -> what is known of it.
        sections: slide -> section.
        failures: a sentence for everything that could not be used.
    """
    parts = ["<h1>Dataset of focal stacks</h1>", f"<p>{html.escape(_opening(facts, sections))}</p>",
             "<h2>Split</h2>", html_table(_split_table(facts, sections))]
    if failures:
        items = "".join(f"<li>{html.escape(failure)}</li>" for failure in failures)
        parts.append(f"<h2>Not used ({len(failures)})</h2><ul>{items}</ul>")
    slides = sorted({field.slide for field in facts.values()}, key=natural_order)
    of_slide = {slide: {name: field for name, field in facts.items() if field.slide == slide} for slide in slides}
    parts += ["<h2>Slides</h2>", html_table(_slide_table(of_slide, sections))]
    for slide, fields in of_slide.items():
        parts.append(_slide_part(folder, slide, fields))
    parts.append("<footer>Depth: stage position of best focus, µm, 0 in the middle of the stack. Shifts: what was "
                 "undone, px (rows, columns), against the middle plane. Agreement: correlation of a plane's detail "
                 "with its neighbour's.</footer>")
    return html_document("Dataset of focal stacks", parts)


def _opening(facts: Fields, sections: Mapping[str, str]) -> str:
    kept = sum(len(field.patches) for field in facts.values())
    left_out = _left_out(facts.values())
    reasons = ", ".join(f"{number} {reason}" for reason, number in left_out.items())
    return (f"{len(sections)} slides, {len(facts)} fields, {kept} patches; {sum(left_out.values())} patches were left "
            f"out: {reasons}.")


def _left_out(fields: Iterable[FieldFacts]) -> dict[str, int]:
    return {reason: sum(field.left_out.get(reason, 0) for field in fields) for reason in REASONS}


def _split_table(facts: Fields, sections: Mapping[str, str]) -> Table:
    rows = []
    for section in SECTIONS:
        fields = [field for field in facts.values() if sections[field.slide] == section]
        slides = [slide for slide, one in sections.items() if one == section]
        patients = {field.patient or field.slide for field in fields}
        patches = sum(len(field.patches) for field in fields)
        rows.append([section, *(str(number) for number in (len(slides), len(patients), len(fields), patches))])
    return Table(["", "slides", "patients", "fields", "patches"], rows)


def _slide_table(of_slide: Mapping[str, Fields], sections: Mapping[str, str]) -> Table:
    rows = []
    for slide, fields in of_slide.items():
        left_out = _left_out(list(fields.values()))
        low, middle, high = _depth_percentiles(list(fields.values()))
        farthest = max(math.hypot(*shift) for field in fields.values() for shift in field.shifts_px)
        rows.append([
            slide, sections[slide], str(len(fields)), str(sum(len(field.patches) for field in fields.values())),
            *(str(left_out[reason]) for reason in REASONS), f"{middle:+.2f} ({low:+.2f} to {high:+.2f})",
            f"{farthest:.1f}", f"{min(min(field.agreement) for field in fields.values()):.2f}",
        ])
    return Table(["slide", "section", "fields", "patches", *REASONS, "depth, µm: median (5 to 95 %)",
                  "largest shift, px", "least agreement"], rows)


def _slide_part(folder: Path, slide: str, fields: Fields) -> str:
    ranked = sorted(fields, key=lambda name: (_share_kept(fields[name]), min(fields[name].agreement), name))
    chosen = {"best": ranked[-1]} | ({"worst": ranked[0]} if len(ranked) > 1 else {})
    figures = [f'<figure><img src="{_histogram_picture(list(fields.values()))}" alt="depth of {html.escape(slide)}">'
               "<figcaption>depth of the tissue</figcaption></figure>"]
    for rank, name in chosen.items():
        field = fields[name]
        data = base64.b64encode((folder / name / "preview.jpg").read_bytes()).decode("ascii")
        text = html.escape(f"{rank} field, {name}: {_share_kept(field):.0%} of its patches kept; "
                           "target, and depth: dark is low")
        figures.append(f'<figure><img src="data:image/jpeg;base64,{data}" alt="{text}"><figcaption>{text}</figcaption>'
                       "</figure>")
    planes = max(len(field.shifts_px) for field in fields.values())
    rows = [[name, *(f"{row:+.1f}, {col:+.1f}" for row, col in field.shifts_px)] for name, field in fields.items()]
    table = html_table(Table(["field", *(f"plane {plane}" for plane in range(planes))], rows))
    return (f'<h2>{html.escape(slide)}</h2><div class="panels">{"".join(figures)}</div>'
            f"<details><summary>Shifts of its planes, px</summary>{table}</details>")


def _share_kept(field: FieldFacts) -> float:
    return len(field.patches) / max(1, len(field.patches) + sum(field.left_out.values()))


def _depths(fields: Sequence[FieldFacts]) -> tuple[np.ndarray, np.ndarray]:
    """Centres of all bins of depth, µm, rising, and the tissue pixels of each."""
    centres, counts = [], []
    for field in fields:
        bins = (np.arange(len(field.depth_histogram)) + 0.5) / HISTOGRAM_BINS - 0.5  # planes
        centres.append(field.positions_um[0] + bins * field.spacing_um)
        counts.append(field.depth_histogram)
    order = np.argsort(np.concatenate(centres), kind="stable")
    return np.concatenate(centres)[order], np.concatenate(counts)[order]


def _depth_percentiles(fields: Sequence[FieldFacts]) -> tuple[float, float, float]:
    centres, counts = _depths(fields)
    reached = np.cumsum(counts) / max(1, counts.sum())
    low, middle, high = (float(centres[min(int(np.searchsorted(reached, share)), len(centres) - 1)])
                         for share in (0.05, 0.5, 0.95))
    return low, middle, high


def _histogram_picture(fields: Sequence[FieldFacts]) -> str:
    centres, counts = _depths(fields)
    figure = Figure(figsize=(4.2, 2.4), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    step = fields[0].spacing_um / HISTOGRAM_BINS
    edges = np.arange(centres.min() - step / 2, centres.max() + step, step)
    axes.hist(centres, edges.tolist(), weights=counts / max(1, counts.sum()) * 100, color="#4269d0")
    for position in fields[0].positions_um:
        axes.axvline(position, color="#bbb", linewidth=0.6, zorder=0)
    axes.set(xlabel="depth, µm (lines: planes)", ylabel="% of tissue")
    file = BytesIO()
    figure.savefig(file, format="png", dpi=90, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
