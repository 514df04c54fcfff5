"""Measure how many images are restored at several sizes of pixels, each by itself and each with its folder.

    python scripts/measure_binning.py ../shared/data/tiles
    python scripts/measure_binning.py ../shared/data/tiles --focus-bias 0.25    # planes far from focus, the hard case

Simulates folders of one camera each: an objective, a camera without JPEG and an oversampling, drawn as in
configs/train_defocus.json, and images of 256 px at planes of their own out of tiles of sharp fields whose
pixels have one size. Prints for each
oversampling the share of images that are binned if each of them tells it by itself, and if all images of its folder do
(docs/decisions/0010-binning.md and 0016-one-camera.md). Where it is 1 none should be. A few minutes of one core.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from bundle.evaluation.fields import FocalField, focal_tiles, list_fields
from bundle.loading import CONFIG, WEIGHTS, load_tile_restorer
from bundle.messages import as_program
from bundle.optics.random_defocus import DefocusSimulator

TILE_PX, MARGIN_PX = 256, 32
OVERSAMPLING = (1.0, 1.4, 1.75, 2.3, 3.0)


def one_camera(oversampling: float, seed: int, focus_bias: float) -> DefocusSimulator:
    """A simulator whose patches all come through one objective and one camera, drawn by `seed`."""
    draw = random.Random(seed)
    full_well = math.exp(draw.uniform(math.log(300), math.log(30_000)))
    noise_px, colours, sharpening = draw.uniform(0, 1.5), draw.uniform(0.7, 2.5), draw.uniform(0, 0.4)
    return DefocusSimulator(
        MARGIN_PX, scanners=1, seed=seed, relief_um=(0.0, 1.2), focus_bias=focus_bias, na_40x=(0.65, 0.8),
        na_20x=(0.37, 0.45), mpp_40x=(0.23, 0.27), mpp_20x=(0.48, 0.52), condenser=(0.5, 1.0),
        spherical_waves=(-0.15, -0.03), phase_ratio=(-0.3, 0.3), chromatic_share=(0.5, 1.5),
        thickness_um=(0.0, 5.0), second_layer=(-0.3, 0.5), full_well=(full_well, full_well),
        noise_px=(noise_px, noise_px), red_blue_noise=(colours, colours), sharpening=(sharpening, sharpening),
        jpeg_quality=(0, 0), oversampling=(oversampling, oversampling),
    )  # fmt: skip


def folders(tiles: Sequence[FocalField], oversampling: float, count: int, images: int, focus_bias: float
            ) -> list[list[Tensor]]:  # fmt: skip
    """Folders of images (3, 256, 256), each of one camera and of fields of one size of pixels.

    Raises:
        ValueError: too few tiles have pixels of one size.
    """
    shown, made = Counter(tile.field.mpp for tile in tiles), []
    most = max(shown.values())
    if most < images:
        raise ValueError(f"a folder of {images} images needs as many tiles of one pixel size, got {most}.")
    for seed in range(count):
        simulate = one_camera(oversampling, seed, focus_bias)
        draw = random.Random(seed)
        mpp = draw.choice([tile.field.mpp for tile in tiles if shown[tile.field.mpp] >= images])
        chosen = draw.sample([at for at, tile in enumerate(tiles) if tile.field.mpp == mpp], images)
        sharp = torch.stack([tiles[at].sharp for at in chosen])
        seeds = torch.tensor(chosen) + 1000 * seed
        made.append(list(simulate(sharp, torch.full((len(chosen),), mpp), seeds).image))
    return made


@torch.inference_mode()
def measure(arguments: argparse.Namespace) -> None:
    """Print a table."""
    network = load_tile_restorer(CONFIG, arguments.weights).requires_grad_(False)
    fields = list_fields(arguments.folder, arguments.split, at_20x=arguments.at_20x)
    tiles = focal_tiles(fields, TILE_PX + 2 * MARGIN_PX)
    print(f"{arguments.count} folders of {arguments.images} images a row, of {len(tiles)} tiles\n\n| oversampling"
          " | binned, each by itself | binned, each with its folder | not binned for their fine detail |\n"
          "|---|---|---|---|")  # fmt: skip
    for oversampling in OVERSAMPLING:
        made = folders(tiles, oversampling, arguments.count, arguments.images, arguments.focus_bias)
        alone, together, detailed = 0, 0, 0
        for images in track(made, "folders", console=Console(stderr=True), transient=True):
            said = network.log2_oversampling_of(images)
            for image in images:
                alone += network.binning_of([image]) > 1
                together += network.binning_of([image], lambda said=said: said) > 1
                detailed += network.binning_of([image], lambda: math.inf) == 1
        shares = (f"{found / arguments.count / arguments.images:.0%}" for found in (alone, together, detailed))
        print(f"| {oversampling:g} | {' | '.join(shares)} |", flush=True)


@as_program
def main(typed: list[str] | None = None) -> None:
    """Parse the line above and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder of sharp fields")
    parser.add_argument("--split", default="train")
    parser.add_argument("--at-20x", action="store_true", help="2 x 2 pixels of fields of 40x averaged")
    parser.add_argument("--focus-bias", type=float, default=1.0,
                        help="see DefocusSimulator (default 1: all planes alike)")
    parser.add_argument("--count", type=int, default=20, help="folders of each oversampling (default 20)")
    parser.add_argument("--images", type=int, default=12, help="of a folder (default 12)")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="of the chain (default models/model.pt)")
    arguments = parser.parse_args(typed)
    torch.set_num_threads(1)
    if arguments.count < 1 or arguments.images < 1 or arguments.focus_bias < 0:
        raise ValueError("--count and --images must be 1 or more, --focus-bias 0 or more.")
    measure(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
