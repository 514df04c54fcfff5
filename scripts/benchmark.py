"""Time every part of the chain on one tile, beside the paper-size P-former, in one run.

    python scripts/benchmark.py                                   # about a minute on 2 cores
    python scripts/benchmark.py --tile 512 --device cuda --json benchmark.json

Reads   configs/inference.json (the compact chain), configs/train.json (the paper-size P-former)
Prints  parameters, multiply-adds and median seconds of each part; how many times faster the chain is

Weights do not change the time, so they are drawn at random.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from monai.bundle import ConfigParser
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bundle.host import keep_large_allocations
from bundle.loading import check_device
from bundle.messages import as_program
from bundle.p_former.network import PFormer
from bundle.prompts.prompter import Prompter
from bundle.restoration import TileRestorer

ROOT = Path(__file__).resolve().parent.parent


class Cost(NamedTuple):
    """What a part costs on one tile."""

    part: str
    parameters: int
    multiply_adds: int
    seconds: float


def declared(config: str, name: str) -> nn.Module:
    """A network that a config declares."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / config))
    network = parser.get_parsed_content(name)
    assert isinstance(network, nn.Module)
    return network.eval()


def cost(part: str, networks: list[nn.Module], run: Callable[[], object], repeats: int, device: str) -> Cost:
    """Count and time one part; the first runs are not counted."""
    with FlopCounterMode(display=False) as counter:
        run()
    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    parameters = sum(parameter.numel() for network in networks for parameter in network.parameters())
    return Cost(part, parameters, counter.get_total_flops() // 2, statistics.median(seconds))


@torch.inference_mode()
def measure(tile_px: int, device: str, repeats: int) -> list[Cost]:
    """Costs of the compact chain's parts, of the chain, and of the paper-size P-former."""
    chain = declared("inference.json", "network_def").to(device)
    assert isinstance(chain, TileRestorer)
    bands = chain.bands
    paper = declared("train.json", "p_former").to(device)
    assert isinstance(paper, PFormer)
    prompter: Prompter = chain.prompter
    image = torch.rand(1, 3, tile_px, tile_px, device=device)
    location = torch.zeros(1, 2, dtype=torch.int64, device=device)
    prompts = prompter(image)
    paper_prompt = torch.randn(1, 197, paper.encoders[0][0].ffn.router.reduce.in_features, device=device)

    def part(name: str, networks: list[nn.Module], run: Callable[[], object]) -> Cost:
        return cost(name, networks, run, repeats, device)

    return [
        part("defocus estimator", [prompter.estimator], lambda: prompter.estimator(image)),
        part("pathology prompt", [prompter.encoder, prompter.restorer],
             lambda: prompter.restorer(prompter.encoder(image), prompts.defocus)),
        part("all prompts", [prompter], lambda: prompter(image)),
        part("P-former", [chain.p_former], lambda: chain.p_former(image, prompts.pathology)),
        *([] if bands is None else [part("band gains", [bands], lambda: bands(image, image, prompts.defocus))]),
        part("P-diffusion, all steps", [chain.denoiser],
             lambda: chain.inferer.sample(image, chain.denoiser, prompts, location, 0)),
        part("whole chain", [chain], lambda: chain(image, location)),
        part("paper-size P-former", [paper], lambda: paper(image, paper_prompt)),
    ]


@as_program
def main() -> None:
    """Parse the line above, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tile", type=int, default=256, help="side of the tile, px")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="CPU threads")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    check_device(arguments.device)
    torch.set_num_threads(arguments.threads)
    keep_large_allocations()
    costs = measure(arguments.tile, arguments.device, arguments.repeats)
    table = Table(title=f"{arguments.tile} x {arguments.tile} px, {arguments.device}, {arguments.threads} threads, "
                        f"{platform.machine()}, torch {torch.__version__}")
    for column in ("part", "parameters", "multiply-adds", "seconds"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for row in costs:
        table.add_row(row.part, f"{row.parameters / 1e6:.2f} M", f"{row.multiply_adds / 1e9:.2f} G",
                      f"{row.seconds:.3f}")
    Console().print(table)
    seconds = {row.part: row.seconds for row in costs}
    faster = seconds["paper-size P-former"] / seconds["whole chain"]
    Console().print(f"The compact chain is {faster:.1f} times faster than the paper-size P-former alone.")
    if arguments.json:
        arguments.json.write_text(json.dumps([row._asdict() for row in costs], indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
