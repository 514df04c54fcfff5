"""Measure how well the defocus estimator tells the distance, also in stains that no training field has.

    python scripts/measure_estimator.py ../shared/data/tiles                        # the split val, 16 tiles
    python scripts/measure_estimator.py ../shared/data/tiles --at-20x --every 1     # as 20x shows it, 6 tiles

Cuts every second tile of 256 px (`--every`) out of sharp fields, shows them in other stains and contrasts
(bundle/evaluation/tissues.py) and simulates the planes of `make evaluate`. Prints a row for each tissue: mean error,
Z-accuracy and sign as in `make evaluate`, error of the contrast value, and by how much planes from 1 um on are read as
farther from focus than they are (below 0: as nearer). Tiles of one field share its relief. Two minutes of one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from bundle.conventions import PLANES, plane_positions_um
from bundle.evaluation.fields import FocalField, focal_tiles, list_fields
from bundle.evaluation.tissues import TISSUES
from bundle.loading import CONFIG, WEIGHTS, load_tile_restorer
from bundle.messages import as_program
from bundle.optics.contrast import contrast_value
from bundle.prompts.defocus import DefocusEstimator
from bundle.training.metrics import defocus_figures

TILE_PX = 256
FAR_UM = 1.0  # from here on it is asked whether distances are read too small


@torch.inference_mode()
def read(estimator: DefocusEstimator, tiles: Sequence[FocalField]) -> Tensor:
    """Read and true distance, read and true contrast of every plane of every tile, (4, N)."""
    rows = []
    for tile in track(tiles, "tiles", console=Console(stderr=True), transient=True):
        for position in plane_positions_um().tolist():
            plane, sharp = tile.plane(position)[None], tile.sharp[None]
            estimate = estimator(plane)
            contrast = contrast_value(plane, sharp, tile.field.mpp)
            true_um = tile.defocus_um(position).median()[None]
            rows.append(torch.stack([estimate.defocus_um, true_um, estimate.contrast, contrast]))
    return torch.cat(rows, 1)


def row(name: str, figures: Tensor) -> str:
    """One row of the table, of figures (4, N) as `read` gives them."""
    read_um, true_um, contrast, true_contrast = figures
    found = defocus_figures(read_um, true_um, contrast, true_contrast)
    outward = ((read_um - true_um) * true_um.sign())[true_um.abs() >= FAR_UM]
    return (f"| {name} | {found.mae_um:.2f} um | {found.z_accuracy:.2f} | {found.sign_accuracy:.0%}"
            f" | {found.contrast_mae:.3f} | {float(outward.mean()):+.2f} um |")  # fmt: skip


def measure(arguments: argparse.Namespace) -> None:
    """Print a table."""
    estimator = load_tile_restorer(CONFIG, arguments.weights).requires_grad_(False).prompter.estimator
    fields = list_fields(arguments.folder, arguments.split, at_20x=arguments.at_20x)
    tiles = focal_tiles(fields, TILE_PX, arguments.every)
    shown = [tile.sharp for tile in tiles]
    print(f"{len(tiles)} tiles of {PLANES} planes\n\n| tissue | mean error | Z-accuracy | sign right"
          f" | contrast, error | from {FAR_UM:.0f} um on read as farther by |\n|---|---|---|---|---|---|")  # fmt: skip
    for name, tissue in TISSUES.items():
        for number, tile in enumerate(tiles):
            tile.sharp = tissue(shown[number], number)
        print(row(name, read(estimator, tiles)), flush=True)


@as_program
def main(typed: list[str] | None = None) -> None:
    """Parse the line above and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder of sharp fields")
    parser.add_argument("--split", default="val")
    parser.add_argument("--at-20x", action="store_true", help="2 x 2 pixels of fields of 40x averaged")
    parser.add_argument("--every", type=int, default=2, help="every so many tiles (default 2)")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="of the chain (default models/model.pt)")
    arguments = parser.parse_args(typed)
    torch.set_num_threads(1)
    if arguments.every < 1:
        raise ValueError(f"--every must be 1 or more, got {arguments.every}.")
    measure(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
