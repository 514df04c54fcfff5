"""A summary as files, each written whole or not at all: table.md, table.csv, slides.csv, figure.png, summary.json."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bundle.evaluation.scores import METRICS, Figures
from bundle.evaluation.slide_figures import slides_csv
from bundle.evaluation.summary import GROUPS, average
from bundle.slides.whole_files import replace_when_done

DIGITS = {"psnr": 2, "ssim": 4, "ssim_uniform": 4, "lpips": 4}
TITLES = {
    "input": "input",
    "unsharp": "unsharp mask",
    "richardson_lucy": "Richardson–Lucy (blind)",
    "coarse": "coarse (P-former)",
    "restored": "restored (chain)",
}
GROUP_TITLES = {
    "mean": "all planes",
    "mean_defocused": "defocused planes",
    "mean_08_16": "0.8 and 1.6 µm",
}
COLOURS = {"input": "0.45", "unsharp": "tab:olive", "richardson_lucy": "tab:brown", "coarse": "tab:blue"}
COLOURS["restored"] = "tab:red"


def write_results(summary: dict[str, Any], folder: Path) -> None:
    """Write the files into `folder`, replacing those of an earlier run."""
    write_text(folder / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(folder / "table.md", markdown(summary))
    write_text(folder / "table.csv", comma_separated(summary))
    write_text(folder / "slides.csv", slides_csv(summary))
    with replace_when_done(folder / "figure.png", overwrite=True) as file:
        figure(summary).savefig(file, format="png", dpi=120)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 under a temporary name, then rename."""
    with replace_when_done(path, overwrite=True) as file:
        file.write(text.encode("utf-8"))


def methods_of(summary: dict[str, Any]) -> list[str]:
    """The methods in the order in which they were scored."""
    return list(summary["mean"])


def metric_titles(summary: dict[str, Any]) -> dict[str, str]:
    """Column heads; LPIPS with its network."""
    heads = ("PSNR, dB", "SSIM", "SSIM 7×7", summary["lpips"]["name"])
    return dict(zip(METRICS, heads, strict=True))


def cell(figures: Figures | None, metric: str) -> str:
    """A figure with its digits, a dash where it was not measured."""
    value = None if figures is None else figures[metric]
    return "–" if value is None else f"{value:.{DIGITS[metric]}f}"


def markdown(summary: dict[str, Any]) -> str:
    """Averages first, then every metric by plane, then the prompts and the origin of the figures."""
    methods, titles = methods_of(summary), metric_titles(summary)
    parts = ["# Evaluation", f"{len(summary['fields'])} fields, {len(summary['planes'])} planes each."]
    for group in GROUPS:
        means = summary[group]
        rows = [[_title(name), *(cell(means[name], metric) for metric in METRICS)] for name in methods]
        parts += [f"## Mean over {GROUP_TITLES[group]}", _grid(["method", *titles.values()], rows)]
    parts += _slide_parts(summary, titles)
    for metric, title in titles.items():
        planes = summary["planes"]
        rows = [[f"{plane['defocus_um']:+.1f}", *(cell(plane[name], metric) for name in methods)] for plane in planes]
        parts += [f"## {title} by plane", _grid(["defocus, µm", *map(_title, methods)], rows)]
    parts += ["## Prompts and colour", *_prompt_lines(summary), "## Origin", _origin(summary)]
    return "\n\n".join(parts) + "\n"


def spread_cell(spread: dict[str, float | None], metric: str) -> str:
    """Mean ± deviation with the metric's digits; a dash where it was not measured."""
    mean, deviation = spread["mean"], spread["deviation"]
    if mean is None:
        return "–"
    digits = DIGITS[metric]
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def _slide_parts(summary: dict[str, Any], titles: dict[str, str]) -> list[str]:
    """Mean ± deviation over slides and planes, and the means of every slide."""
    methods, slides = methods_of(summary), summary["slides"]
    rows = [[_title(name), *(spread_cell(summary["over_slides"][name][metric], metric) for metric in titles)]
            for name in methods]
    counts = f"slides: {len(slides)}, planes: {len(summary['planes'])}"
    parts = [f"## Slides as wholes: mean ± standard deviation over slides and planes ({counts})",
             _grid(["method", *titles.values()], rows)]
    for metric in ("psnr", "ssim", "lpips"):
        means = [[slide["slide"], str(slide["fields"]),
                  *(cell(average(plane[name] for plane in slide["planes"]), metric) for name in methods)]
                 for slide in slides]
        parts += [f"## {titles[metric]} by slide, mean over planes",
                  _grid(["slide", "fields", *map(_title, methods)], means)]
    return parts


def _title(method: str) -> str:
    return TITLES.get(method, method)


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _prompt_lines(summary: dict[str, Any]) -> list[str]:
    lines = []
    estimator, prompts = summary["defocus_estimator"], summary["prompt_restorer"]
    if estimator is not None:
        shares = {name: "–" if estimator[name] is None else f"{estimator[name]:.3f}" for name in estimator}
        lines.append(
            f"Defocus estimator on {estimator['tiles']} tiles: MAE {shares['mae_um']} µm, Z-accuracy "
            f"{shares['z_accuracy']}, sign right {shares['sign_accuracy']}, contrast MAE {shares['contrast_mae']}."
        )
    if prompts is not None:
        lines.append(f"Prompt restorer: MSE to the sharp tile's tokens × {prompts['ratio']:.3f}.")
    for stage, shift in summary["colour_shift"].items():
        lines.append(
            f"Mean colour of 64 px blocks, {stage} against input: {shift['mean']:.2f} of 255 on average, "
            f"{shift['max']:.2f} at worst."
        )
    return lines


def _origin(summary: dict[str, Any]) -> str:
    missing = [summary["lpips"]["missing"]] if summary["lpips"]["missing"] else []
    lines = [f"- {name}: {summary[name] or 'unknown'}" for name in ("command", "commit", "hardware", "weights_sha256")]
    return "\n".join(lines + [f"- {line}" for line in missing])


def comma_separated(summary: dict[str, Any]) -> str:
    """One line per plane (or group) and method, an empty cell where nothing was measured."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["defocus_um", "method", *METRICS])
    planes = [(plane["defocus_um"], plane) for plane in summary["planes"]]
    for label, block in planes + [(group, summary[group]) for group in GROUPS]:
        for name in methods_of(summary):
            figures = block[name] or dict.fromkeys(METRICS)
            values = ["" if figures[metric] is None else f"{figures[metric]:.6f}" for metric in METRICS]
            table.writerow([label, name, *values])
    return text.getvalue()


def figure(summary: dict[str, Any]) -> Figure:
    """Each measured metric against defocus: one line a method, one deviation over slides shaded."""
    first = summary["planes"][0][methods_of(summary)[0]]
    measured = {name: title for name, title in metric_titles(summary).items() if first[name] is not None}
    measured.pop("ssim_uniform", None)
    drawn = Figure(figsize=(4.6 * len(measured), 4.2), layout="constrained")
    axes = drawn.subplots(1, len(measured), squeeze=False)[0]
    positions = [plane["defocus_um"] for plane in summary["planes"]]
    for axis, (metric, title) in zip(axes, measured.items(), strict=True):
        for name in methods_of(summary):
            values = [plane[name][metric] for plane in summary["planes"]]
            (line,) = axis.plot(positions, values, marker="o", markersize=3, color=COLOURS.get(name),
                                label=_title(name))
            if len(summary["slides"]) > 1:
                over = [[slide["planes"][place][name][metric] for slide in summary["slides"]]
                        for place in range(len(positions))]
                means, spans = ([act(some) for some in over] for act in (statistics.fmean, statistics.stdev))
                low, high = ([mean + sign * span for mean, span in zip(means, spans, strict=True)]
                             for sign in (-1, 1))
                axis.fill_between(positions, low, high, color=line.get_color(), alpha=0.08, linewidth=0)
        axis.set(xlabel="defocus, µm", ylabel=title, title=title + (" (lower is better)" if metric == "lpips" else ""))
        axis.grid(alpha=0.3)
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return drawn
