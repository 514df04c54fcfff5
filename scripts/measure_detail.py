"""Measure whether a restoration shows too little detail, or too much, for what it knows of the truth.

    python scripts/measure_detail.py ../shared/data/tiles              # the split val
    python scripts/measure_detail.py ../shared/data/tiles --at-20x     # the same fields as 20x shows them
    python scripts/measure_detail.py ../shared/data/tiles --tissue swapped      # in colours that no training field has

Cuts every seventh tile of 256 px (`--every`) out of sharp fields and simulates the planes of `make evaluate`. Prints
the PSNR gain of the P-former and of the chain near focus and far from it and, for each octave of frequencies, by what
factor its detail ought to be multiplied: <truth, result> / <result, result>, over all tiles. 1 has the least squared
error; above 1 the result is too soft, below too sharp. Where nothing can be known both are near 0. Less than a minute
of two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from bundle.conventions import plane_positions_um
from bundle.evaluation.fields import focal_tiles, list_fields
from bundle.evaluation.tissues import TISSUES, TISSUES_HELP
from bundle.loading import CONFIG, WEIGHTS, load_tile_restorer
from bundle.messages import as_program
from bundle.training.metrics import psnr

TILE_PX = 256
OCTAVES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)  # cycles a pixel
REACH_UM = {"in focus": (0.0, 0.1), "0.8 and 1.6 um": (0.1, 2.0), "2.4 to 4.8 um": (2.0, 5.0)}


def products(result: Tensor, truth: Tensor) -> Tensor:
    """<truth, result> and <result, result> of each octave, under a Hann window: (3, N, N) twice -> (2, octaves)."""
    rows, columns = torch.fft.fftfreq(TILE_PX)[:, None], torch.fft.rfftfreq(TILE_PX)[None]
    octave = torch.bucketize(torch.hypot(rows, columns), torch.tensor(OCTAVES), right=True).flatten()
    window = torch.hann_window(TILE_PX)
    window = window[:, None] * window
    shown, wanted = (torch.fft.rfft2((image - image.mean((1, 2), keepdim=True)) * window) for image in (result, truth))
    both = torch.stack([(wanted * shown.conj()).real, shown.abs().square()]).sum(1).flatten(1)
    return torch.zeros(2, len(OCTAVES) + 1).index_add(1, octave, both)[:, 1:-1]


def measure(arguments: argparse.Namespace) -> None:
    """Print a table."""
    network = load_tile_restorer(CONFIG, arguments.weights).requires_grad_(False)
    fields = list_fields(arguments.folder, arguments.split, at_20x=arguments.at_20x)
    tiles = focal_tiles(fields, TILE_PX, arguments.every)
    for number, tile in enumerate(tiles):
        tile.sharp = TISSUES[arguments.tissue](tile.sharp, number)
    gains: dict[tuple[str, str], list[float]] = {}
    sums: dict[tuple[str, str], Tensor] = {}
    for tile in track(tiles, "tiles", console=Console(stderr=True), transient=True):
        sharp = tile.sharp
        for position in plane_positions_um().tolist():
            plane = tile.plane(position)[None]
            restoration = network.restore(plane)
            reach = next(name for name, (least, most) in REACH_UM.items() if least <= abs(position) < most)
            for stage, result in (("P-former", restoration.coarse), ("chain", restoration.restored)):
                gains.setdefault((reach, stage), []).append(float(psnr(result, sharp[None]) - psnr(plane, sharp[None])))
                sums[reach, stage] = sums.get((reach, stage), torch.zeros(())) + products(result[0], sharp)
    bands = [f"{1 / most:.0f} to {1 / least:.0f} px" for least, most in zip(OCTAVES[:-1], OCTAVES[1:], strict=True)]
    print(f"{len(tiles)} tiles\n\n| | gain | " + " | ".join(bands) + " |\n|" + "---|" * (2 + len(bands)))
    for (reach, stage), (wanted, given) in sums.items():
        factors = " | ".join(f"{float(factor):.2f}" for factor in wanted / given)
        gain = sum(gains[reach, stage]) / len(gains[reach, stage])
        print(f"| {reach}, {stage} | {gain:+.2f} dB | {factors} |")


@as_program
def main(typed: list[str] | None = None) -> None:
    """Parse the line above and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder of sharp fields")
    parser.add_argument("--split", default="val")
    parser.add_argument("--at-20x", action="store_true", help="2 x 2 pixels of fields of 40x averaged")
    parser.add_argument("--every", type=int, default=7, help="every so many tiles (default 7)")
    parser.add_argument("--tissue", choices=list(TISSUES), default="own", help=TISSUES_HELP)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="of the chain (default models/model.pt)")
    arguments = parser.parse_args(typed)
    if arguments.every < 1:
        raise ValueError(f"--every must be 1 or more, got {arguments.every}.")
    measure(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
