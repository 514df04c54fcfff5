"""Measure what a linear filter gains that has seen the truth: a bar that tells how hard a split is.

    python scripts/measure_oracle.py ../shared/data/tiles                 # the split test, planes of `make evaluate`
    python scripts/measure_oracle.py ../shared/data/tiles --split val --weights models/model.pt   # field by field

Of every plane of every field, the filter that brings it nearest to its own truth: alike in all directions, one 3 x 3
matrix of the colours for each ring of frequencies, by least squares. It knows the optics, the distance, the noise and
the field, which no restoration does; but it is one filter for the whole plane, and linear, which a restoration need not
be. Prints the mean PSNR gain over the fields, dB, at each plane. Half a minute of one core.

With `--weights` also what the P-former gains, and both field by field: one in which the P-former falls far behind has
tissue or a camera that it does not know. Ten seconds of one core more for each field.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from bundle.conventions import plane_positions_um
from bundle.evaluation.fields import FocalField, list_fields, read_field
from bundle.evaluation.tissues import TISSUES, TISSUES_HELP
from bundle.loading import load_tile_restorer
from bundle.messages import as_program
from bundle.optics.camera import Camera
from bundle.training.metrics import psnr

RINGS = 128  # to 1 cycle a pixel


class Gain(NamedTuple):
    """PSNR gain of one plane of one field, dB."""

    field: str
    position_um: float
    filter_db: float
    p_former_db: float = math.nan


def means(rows: Sequence[Gain], column: str) -> dict[float, float]:
    """Mean over the fields at each position."""
    positions = dict.fromkeys(row.position_um for row in rows)
    return {at: fmean(getattr(row, column) for row in rows if row.position_um == at) for at in positions}


def filtered(plane: Tensor, sharp: Tensor) -> Tensor:
    """`plane` by the best filter towards `sharp`, both (3, H, W)."""
    height, width = plane.shape[-2:]
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    rings = (torch.hypot(rows, columns) * RINGS).long()
    taper = torch.hann_window(height)[:, None] * torch.hann_window(width)
    flat, flat_sharp = (image - image.mean((1, 2), keepdim=True) for image in (plane, sharp))
    seen, wanted = (torch.fft.rfft2(image.double() * taper) for image in (flat, flat_sharp))
    spectrum = torch.fft.rfft2(flat)
    for ring in range(int(rings.max()) + 1):
        inside = rings == ring
        power = (seen[:, inside] @ seen[:, inside].conj().T).real
        cross = (wanted[:, inside] @ seen[:, inside].conj().T).real
        gain = cross @ torch.linalg.pinv(power, hermitian=True)
        spectrum[:, inside] = gain.to(spectrum.dtype) @ spectrum[:, inside]
    return (torch.fft.irfft2(spectrum, s=(height, width)) + sharp.mean((1, 2), keepdim=True)).clamp(0, 1)


def measure(arguments: argparse.Namespace) -> list[Gain]:
    """A row for each plane; read in the middle of the plane, away from its borders."""
    network = None
    if arguments.weights:
        network = load_tile_restorer(weights=arguments.weights).requires_grad_(False)
        network.stop_after = "p_former"
    rows = []
    fields = list_fields(arguments.folder, arguments.split)
    for number, field in enumerate(track(fields, "fields", console=Console(stderr=True), transient=True)):
        sharp = TISSUES[arguments.tissue](read_field(field, arguments.crop_px), number)
        focal = FocalField(field, sharp, arguments.relief_um, Camera(jpeg_quality=90), 0)
        height, width = sharp.shape[-2:]
        middle = (None, slice(None), slice(height // 4, height - height // 4), slice(width // 4, width - width // 4))
        for position in plane_positions_um().tolist():
            plane = focal.plane(position)
            results = [filtered(plane, sharp)] + ([network.restore(plane[None]).coarse[0]] if network else [])
            before = psnr(plane[middle], sharp[middle])
            gains = [float(psnr(result[middle], sharp[middle]) - before) for result in results]
            rows.append(Gain(field.name, round(position, 1), *gains))
    return rows


def show(name: str, gains: dict[float, float]) -> None:
    """Two lines of the mean gains at each position, dB."""
    blurred = {position: gain for position, gain in gains.items() if position}
    near = fmean(gain for position, gain in blurred.items() if abs(position) < 2)
    print(f"{name}: 12 planes {fmean(blurred.values()):+.2f} dB, at 0.8 and 1.6 um {near:+.2f} dB,"
          f" in focus {gains[0.0]:+.2f} dB")  # fmt: skip
    print("  ".join(f"{position:+.1f} um {gain:+.2f}" for position, gain in sorted(gains.items())))


@as_program
def main(typed: list[str] | None = None) -> None:
    """Parse the line above, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder of sharp fields")
    parser.add_argument("--split", default="test")
    parser.add_argument("--crop-px", type=int, default=512, help="side of each field's centre (default 512)")
    parser.add_argument("--relief-um", type=float, default=0.8)
    parser.add_argument("--weights", type=Path, help="of the chain: what its P-former gains, too, field by field")
    parser.add_argument("--tissue", choices=list(TISSUES), default="own", help=TISSUES_HELP)
    arguments = parser.parse_args(typed)
    torch.set_num_threads(1)
    rows = measure(arguments)
    show("filter", means(rows, "filter_db"))
    if arguments.weights:
        show("P-former", means(rows, "p_former_db"))
        print("\n| field, planes out of focus | filter, dB | P-former, dB | difference |\n|---|---|---|---|")
        for field in dict.fromkeys(row.field for row in rows):
            own = [row for row in rows if row.field == field and row.position_um]
            known, found = fmean(row.filter_db for row in own), fmean(row.p_former_db for row in own)
            print(f"| {field} | {known:+.2f} | {found:+.2f} | {found - known:+.2f} |")


if __name__ == "__main__":
    raise SystemExit(main())
