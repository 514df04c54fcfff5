"""Measure what the trust map is worth: its rank correlation with the true local error, on planes whose truth is known.

    python scripts/measure_trust.py ../shared/data/tiles                     # the split test
    python scripts/measure_trust.py ../shared/data/tiles --split val --crop-px 512 --fit   # weights of the signs

Reads sharp fields (bundle/evaluation/fields.py), simulates planes of their centres over uneven tissue, restores them
tile by tile with models/model.pt and judges them as `mop restore --trust` does. Prints, for every sign of doubt and for
all together, Spearman's rank correlation with the mean absolute error of 64 px cells: over all cells, and inside single
tiles (the mean of their correlations); and the error above the limit, below it and by tenths of doubt. Beside the signs
stand two figures that need no trust map at all: the estimated distance to focus and the contrast of the result. --table
keeps the cells as CSV; --tables reads such files instead of restoring; --figure draws the doubt of several samples
against the error, cell by cell. 28 tiles with two samples: about a minute and a half of one core.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import spearmanr
from torch.nn import functional

from bundle.evaluation.fields import FocalField, list_fields, read_field
from bundle.loading import CONFIG, WEIGHTS, load_tile_restorer
from bundle.messages import as_program
from bundle.optics.camera import Camera
from bundle.restoration import TileRestorer
from bundle.trust.gauge import LIMIT, MANY_SAMPLES, ONE_SAMPLE, SIGNS, TrustGauge

CELL_PX, TILE_PX = 64, 256
COLUMNS = ("tile", *SIGNS, "distance_um", "result_contrast", "error")  # signs, contrast and error: grey levels of 255


def cells_of(network: TileRestorer, gauge: TrustGauge, image: torch.Tensor, truth: torch.Tensor, tile: int
             ) -> list[list[float]]:  # fmt: skip
    """Rows of `COLUMNS` of one tile, (3, H, W) in [0, 1]."""
    with torch.inference_mode():
        restoration = network.restore(image[None])
        layers = gauge.judge(image[None], restoration).layers[0, :3]
        error = (restoration.restored[0] - truth).abs().mean(0, keepdim=True)
        grey = restoration.restored[0].mean(0, keepdim=True)
        means = functional.avg_pool2d(torch.cat([layers, error, grey, grey.square()])[None], CELL_PX)[0].flatten(1)
    contrast = (means[5] - means[4].square()).clamp(min=0).sqrt()
    distance = functional.avg_pool2d(restoration.focus_map_um[0].abs(), CELL_PX).flatten()
    rows = torch.stack([*(255 * means[:3]), distance, 255 * contrast, 255 * means[3]], 1)
    return [[tile, *row] for row in rows.tolist()]


def measure(folder: str, split: str, positions_um: Sequence[float], crop_px: int, samples: int, relief_um: float
            ) -> list[list[float]]:  # fmt: skip
    """Rows of `COLUMNS` of every field of a split, at every position."""
    network = load_tile_restorer(CONFIG, WEIGHTS)
    network.samples = samples
    gauges: dict[float, TrustGauge] = {}
    rows: list[list[float]] = []
    tiles = 0
    for field in list_fields(folder, split):
        sharp = read_field(field, crop_px)
        focal = FocalField(field, sharp, relief_um, Camera(), 0)
        gauge = gauges.setdefault(field.mpp, TrustGauge(field.mpp))
        for position in positions_um:
            plane = focal.plane(position)
            for row in range(0, sharp.shape[1] - TILE_PX + 1, TILE_PX):
                for col in range(0, sharp.shape[2] - TILE_PX + 1, TILE_PX):
                    part = (slice(None), slice(row, row + TILE_PX), slice(col, col + TILE_PX))
                    rows += cells_of(network, gauge, plane[part], sharp[part], tiles)
                    tiles += 1
        print(f"{field.name}: {tiles} tiles", flush=True)
    return rows


def correlations(table: NDArray[np.float64], doubt: NDArray[np.float64]) -> tuple[float, float]:
    """Spearman's rank correlation of a doubt with the error: over all cells, and the mean inside single tiles."""
    error = table[:, COLUMNS.index("error")]
    inside = []
    for tile in np.unique(table[:, 0]):
        chosen = table[:, 0] == tile
        if np.ptp(doubt[chosen]) > 0:
            inside.append(spearmanr(doubt[chosen], error[chosen]).statistic)
    return float(spearmanr(doubt, error).statistic), float(np.mean(inside))


def tenths(doubt: NDArray[np.float64]) -> list[NDArray[np.intp]]:
    """Places of the cells in ten equal shares, the least doubtful first."""
    return np.array_split(np.argsort(doubt), 10)


def fitted(table: NDArray[np.float64], signs: Sequence[str]) -> dict[str, float]:
    """Weights that turn signs into the expected error: least squares, none below 0."""
    columns = table[:, [COLUMNS.index(sign) for sign in signs]]
    weights, _ = nnls(columns, table[:, COLUMNS.index("error")])
    return dict(zip(signs, weights.tolist(), strict=True))


def read_tables(paths: Sequence[str]) -> NDArray[np.float64]:
    """Rows of `COLUMNS` of tables that --table wrote; tiles of different tables stay different."""
    tables = []
    for number, path in enumerate(paths):
        with Path(path).open(newline="") as file:
            table = np.array([[float(row[name]) for name in COLUMNS] for row in csv.DictReader(file)])
        table[:, 0] += 1e6 * number
        tables.append(table)
    return np.concatenate(tables)


def draw(table: NDArray[np.float64], path: str) -> None:
    """Doubt against true error, one point a cell, and the mean error of ten equal shares of the cells by doubt."""
    from matplotlib.figure import Figure

    signs, distance, error = table[:, 1:4], table[:, 4], table[:, 6]
    doubt = signs @ np.array(MANY_SAMPLES)
    over_all, inside = correlations(table, doubt)
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    points = axes.scatter(doubt, error, c=distance, s=9, cmap="viridis", alpha=0.8, linewidths=0)
    figure.colorbar(points, ax=axes, label="estimated distance to focus, µm")
    shares = tenths(doubt)
    axes.plot([doubt[share].mean() for share in shares], [error[share].mean() for share in shares], "o-",
              color="crimson", label="means of ten equal shares")  # fmt: skip
    reach = float(max(doubt.max(), LIMIT))
    axes.plot([0, reach], [0, reach], ":", color="grey", label="doubt = error")
    axes.axvline(LIMIT, color="grey", linestyle="--", label=f"limit, {LIMIT:g}")
    tiles = len(np.unique(table[:, 0]))
    axes.set(xlabel="doubt, grey levels of 255", ylabel="true mean absolute error, grey levels of 255",
             title=f"Spearman {over_all:.2f} over {len(table)} cells, {inside:.2f} inside one of {tiles} tiles")
    axes.title.set_fontsize(10)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)


@as_program
def main(typed: list[str] | None = None) -> None:
    """Parse the line above and measure."""
    parser = argparse.ArgumentParser(description="Rank correlation of the trust map with the true local error.")
    parser.add_argument("folder", nargs="?", help="folder of sharp fields")
    parser.add_argument("--split", default="test")
    parser.add_argument("--positions", type=float, nargs="+", default=[-3.2, -1.6, 1.6, 3.2], help="µm")
    parser.add_argument("--crop-px", type=int, default=256, help="side of each field's centre (default 256)")
    parser.add_argument("--samples", type=int, default=2, help="of P-diffusion (default 2)")
    parser.add_argument("--relief-um", type=float, default=0.8)
    parser.add_argument("--table", help="keep the cells as CSV")
    parser.add_argument("--tables", nargs="+", help="read such files instead of restoring")
    parser.add_argument("--figure", help="draw doubt against error, as PNG")
    parser.add_argument("--fit", action="store_true", help="fit the weights of the signs")
    arguments = parser.parse_args(typed)
    if not arguments.tables and not arguments.folder:
        parser.error("a folder of fields, or --tables.")
    torch.set_num_threads(1)
    if arguments.tables:
        table = read_tables(arguments.tables)
    else:
        table = np.array(measure(arguments.folder, arguments.split, arguments.positions, arguments.crop_px,
                                 arguments.samples, arguments.relief_um))  # fmt: skip
    if arguments.table:
        with Path(arguments.table).open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *table.tolist()])
    if arguments.figure:
        draw(table, arguments.figure)
    if arguments.fit:
        for name, signs in (("ONE_SAMPLE", ("reblur", "edges")), ("MANY_SAMPLES", SIGNS)):
            print(name, {sign: round(weight, 3) for sign, weight in fitted(table, signs).items()})
    signs = table[:, 1:4]
    doubts = {sign: signs[:, place] for place, sign in enumerate(SIGNS)}
    doubts |= {"doubt, one sample": signs @ np.array(ONE_SAMPLE), "doubt, several": signs @ np.array(MANY_SAMPLES)}
    doubts |= {"distance to focus": table[:, 4], "contrast of the result": table[:, 5]}
    print(f"{len(np.unique(table[:, 0]))} tiles, {len(table)} cells, error {table[:, 6].mean():.2f} grey levels")
    for name, doubt in doubts.items():
        over_all, inside = correlations(table, doubt)
        print(f"{name:24s} all cells {over_all:5.2f}   inside tiles {inside:5.2f}")
    several, error = doubts["doubt, several"], table[:, 6]
    above = several > LIMIT
    print(f"above the limit of {LIMIT:g}: {above.sum()} cells", end="")
    if above.any() and not above.all():
        print(f", error {error[above].mean():.1f}; the others {error[~above].mean():.1f}", end="")
    print()
    print("error by tenths of doubt, several:", *(f"{error[share].mean():.1f}" for share in tenths(several)))


if __name__ == "__main__":
    raise SystemExit(main())
