"""Measure what each part of the shipped weights is worth, without training anew: one at a time is replaced.

    python scripts/measure_parts.py ../shared/data/tiles --lpips-folder ../shared/lpips_squeeze    # the split val

Reads sharp fields, cuts every seventh tile of 256 px out of them (`--every`) and simulates the planes of `make
evaluate`. Prints PSNR and LPIPS (squeeze) of the P-former and of the chain, means over the planes out of focus, with
all parts as they are, with one of them replaced by zeros or by equal shares, and with one view in the P-former instead
of two. A quarter of an hour of two cores.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from rich.progress import track

from bundle.conventions import plane_positions_um
from bundle.evaluation.fields import focal_tiles, list_fields
from bundle.loading import CONFIG, WEIGHTS, load_tile_restorer
from bundle.messages import as_program
from bundle.p_former.experts import ExpertFeedForward, Router
from bundle.restoration import TileRestorer
from bundle.training.metrics import load_lpips, psnr

TILE_PX = 256


def no_prompt_at_the_gates(network: TileRestorer) -> None:
    for module in network.p_former.modules():
        if isinstance(module, Router):
            module.gate_input = "features"


def no_sub_experts(network: TileRestorer) -> None:
    for module in network.p_former.modules():
        if isinstance(module, ExpertFeedForward):
            torch.nn.init.zeros_(module.sub_experts)


def equal_gates(network: TileRestorer) -> None:
    for module in network.p_former.modules():
        if isinstance(module, Router):
            torch.nn.init.zeros_(module.gate.weight)
            torch.nn.init.zeros_(module.gate.bias)


def no_edges(network: TileRestorer) -> None:
    network.denoiser.use_edges = False


def no_pathology(network: TileRestorer) -> None:
    network.denoiser.use_pathology = False


def one_view(network: TileRestorer) -> None:
    network.p_former.self_ensemble = False


PARTS: dict[str, Callable[[TileRestorer], None]] = {
    "as shipped": lambda network: None,
    "P_P at the gates of the P-former zero": no_prompt_at_the_gates,
    "sub-experts zero": no_sub_experts,
    "gates uniform": equal_gates,
    "one view in the P-former": one_view,
    "P_E of P-diffusion zero": no_edges,
    "P_P of P-diffusion zero": no_pathology,
}


def measure(arguments: argparse.Namespace) -> None:
    """Print a row for each part."""
    shipped = load_tile_restorer(arguments.config, arguments.weights)
    distance = load_lpips(arguments.lpips_folder, "squeeze").distance if arguments.lpips_folder else None
    tiles = focal_tiles(list_fields(arguments.folder, arguments.split), TILE_PX, arguments.every)
    blurred_um = [at for at in plane_positions_um().tolist() if abs(at) > 0.1]
    planes = [(tile.plane(at)[None], tile.sharp[None]) for tile in tiles for at in blurred_um]
    print(f"{len(planes)} planes\n\n| | P-former, dB | chain, dB | LPIPS, P-former | LPIPS, chain |")
    print("|---|---|---|---|---|")
    for name, replace in PARTS.items():
        network = copy.deepcopy(shipped).requires_grad_(False)
        replace(network)
        rows = []
        for image, sharp in track(planes, name, console=Console(stderr=True), transient=True):
            result = network.restore(image)
            pair = (result.coarse, result.restored)
            rows.append([float(psnr(one, sharp)) for one in pair]
                        + [math.nan if distance is None else float(distance(one, sharp)) for one in pair])
        figures = [fmean(column) for column in zip(*rows, strict=True)]
        print(f"| {name} | {figures[0]:.2f} | {figures[1]:.2f} | {figures[2]:.4f} | {figures[3]:.4f} |", flush=True)


@as_program
def main(typed: list[str] | None = None) -> None:
    """Parse the line above and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder of sharp fields")
    parser.add_argument("--split", default="val")
    parser.add_argument("--every", type=int, default=7, help="every so many tiles (default 7)")
    parser.add_argument("--lpips-folder", type=Path, help="weights of LPIPS (squeeze); none: not measured")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    arguments = parser.parse_args(typed)
    if arguments.every < 1:
        raise ValueError(f"--every must be 1 or more, got {arguments.every}.")
    measure(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
