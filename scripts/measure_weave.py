"""Measure the weave of a restoration: how much of what P-diffusion adds lies in few directions or at few periods.

    python scripts/measure_weave.py ../shared/data/tiles --split val               # models/model.pt
    python scripts/measure_weave.py ../shared/data/tiles --split val --weights runs/chain.pt

Tissue looks alike in every direction, on the mean of many fields; a weave does not. Of each plane's power spectrum of
restored minus coarse, meaned over the fields, whatever exceeds four times the median of its ring of frequencies
(periods of 2.2 to 8 px) is the weave, as a deviation in grey levels of 255. Beside it stand the whole deviation in that
band, the strongest period and direction, and the same of the truth minus the coarse image, which holds no weave. Reads
the middle of sharp fields and simulates their planes. 10 fields of 512 px, four planes: a minute of one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bundle.evaluation.fields import FocalField, list_fields, read_field
from bundle.loading import CONFIG, WEIGHTS, load_tile_restorer
from bundle.messages import as_program
from bundle.optics.camera import Camera

TILE_PX = 256
BAND = (0.12, 0.45)  # cycles a pixel


class Weave(NamedTuple):
    """What a mean power spectrum holds in `BAND`."""

    deviation: float  # of what exceeds its ring, grey levels
    whole: float  # deviation of all, grey levels
    period_px: float  # where a ring is exceeded most
    direction_deg: float  # of the wave there: 0 across columns, 90 across rows, within [0, 180)
    ratio: float  # by what factor


def power(difference: Tensor) -> Tensor:
    """Power spectrum of the mean of the channels, under a Hann window: (3, N, N) -> (N, N); sums to the variance."""
    grey = difference.mean(0)
    window = torch.hann_window(len(grey), periodic=False)
    window = window[:, None] * window
    return (torch.fft.fft2((grey - grey.mean()) * window / window.square().mean().sqrt()).abs() / grey.numel()).square()


def weave_of(spectrum: Tensor) -> Weave:
    """What of a mean power spectrum, (N, N), lies in few directions."""
    rows, columns = torch.meshgrid(*[torch.fft.fftfreq(len(spectrum))] * 2, indexing="ij")
    radius = (rows.square() + columns.square()).sqrt()
    around = functional.pad(spectrum[None, None], (2, 2, 2, 2), mode="circular")
    smooth = functional.avg_pool2d(around, 5, 1)[0, 0]
    rings = (radius * 64).long()
    medians = torch.stack([smooth[rings == ring].median() for ring in range(int(rings.max()) + 1)])[rings]
    inside = (radius > BAND[0]) & (radius < BAND[1])
    excess = ((smooth - 4 * medians).clamp(min=0) * inside).sum().sqrt()
    ratio = smooth / medians.clamp(min=1e-12) * inside
    place = divmod(int(ratio.argmax()), len(spectrum))
    direction = math.degrees(math.atan2(float(rows[place]), float(columns[place]))) % 180
    return Weave(float(excess), float((smooth * inside).sum().sqrt()), float(1 / radius[place]), direction,
                 float(ratio[place]))  # fmt: skip


def measure(folder: str, split: str, weights: Path, positions_um: Sequence[float], crop_px: int) -> None:
    """Prints a line for each position."""
    network = load_tile_restorer(CONFIG, weights)
    fields = list_fields(folder, split)
    print("  plane   restored - coarse: weave of all   strongest                      truth - coarse: weave of all")
    for position in positions_um:
        sums: list[Tensor] = []
        for field in fields:
            sharp = read_field(field, crop_px)
            plane = FocalField(field, sharp, 0.0, Camera(), 0).plane(position)
            for row in range(0, sharp.shape[1] - TILE_PX + 1, TILE_PX):
                for column in range(0, sharp.shape[2] - TILE_PX + 1, TILE_PX):
                    part = (slice(None), slice(row, row + TILE_PX), slice(column, column + TILE_PX))
                    with torch.inference_mode():
                        restoration = network.restore(plane[part][None])
                    coarse = restoration.coarse[0]
                    pictures = (restoration.restored[0] - coarse, sharp[part] - coarse)
                    sums.append(torch.stack([power(255 * picture) for picture in pictures]))
        restored, truth = (weave_of(spectrum) for spectrum in torch.stack(sums).mean(0))
        print(f"{position:+5.1f} um   {restored.deviation:18.2f} of {restored.whole:4.2f} grey levels,"
              f" {restored.ratio:5.1f} x its ring at {restored.period_px:.1f} px, {restored.direction_deg:3.0f} deg"
              f"   {truth.deviation:10.2f} of {truth.whole:.2f}", flush=True)  # fmt: skip


@as_program
def main(typed: list[str] | None = None) -> None:
    """Parse the line above and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder of sharp fields")
    parser.add_argument("--split", default="val")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="of the chain (default models/model.pt)")
    parser.add_argument("--positions", type=float, nargs="+", default=[-4.8, -3.2, 3.2, 4.8], help="µm")
    parser.add_argument("--crop-px", type=int, default=512, help="side of each field's centre (default 512)")
    arguments = parser.parse_args(typed)
    torch.set_num_threads(1)
    measure(arguments.folder, arguments.split, arguments.weights, arguments.positions, arguments.crop_px)


if __name__ == "__main__":
    raise SystemExit(main())
