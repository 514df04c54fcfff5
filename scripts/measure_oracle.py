"""Measure what a linear filter gains that has seen the truth: a bar that tells how hard a split is.

    python scripts/measure_oracle.py ../shared/data/tiles                 # the split test, planes of `make evaluate`

Of every plane of every field, the filter that brings it nearest to its own truth: alike in all directions, one 3 x 3
matrix of the colours for each ring of frequencies, by least squares. It knows the optics, the distance, the noise and
the field, which no restoration does; but it is one filter for the whole plane, and linear, which a restoration need not
be. Prints the mean PSNR gain over the fields, dB, at each plane. Half a minute of one core.
"""

from __future__ import annotations

import argparse
import sys
from statistics import fmean

import torch
from torch import Tensor

from bundle.conventions import plane_positions_um
from bundle.evaluation.fields import FocalField, list_fields, read_field
from bundle.messages import sentence, unwrapped
from bundle.optics.camera import Camera
from bundle.training.metrics import psnr

RINGS = 128  # to 1 cycle a pixel


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


def measure(folder: str, split: str, crop_px: int, relief_um: float) -> dict[float, float]:
    """Mean PSNR gain at each position, dB; read in the middle of the plane, away from its borders."""
    gains: dict[float, list[float]] = {}
    for field in list_fields(folder, split):
        sharp = read_field(field, crop_px)
        focal = FocalField(field, sharp, relief_um, Camera(jpeg_quality=90), 0)
        height, width = sharp.shape[-2:]
        middle = (None, slice(None), slice(height // 4, height - height // 4), slice(width // 4, width - width // 4))
        for position in plane_positions_um().tolist():
            plane = focal.plane(position)
            gain = psnr(filtered(plane, sharp)[middle], sharp[middle]) - psnr(plane[middle], sharp[middle])
            gains.setdefault(round(position, 1), []).append(float(gain))
    return {position: fmean(values) for position, values in gains.items()}


def main(typed: list[str] | None = None) -> int:
    """Parse the line above, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder of sharp fields")
    parser.add_argument("--split", default="test")
    parser.add_argument("--crop-px", type=int, default=512, help="side of each field's centre (default 512)")
    parser.add_argument("--relief-um", type=float, default=0.8)
    arguments = parser.parse_args(typed)
    torch.set_num_threads(1)
    try:
        gains = measure(arguments.folder, arguments.split, arguments.crop_px, arguments.relief_um)
    except (ValueError, OSError) as error:
        print(f"measure_oracle.py: {sentence(unwrapped(error))}", file=sys.stderr)
        return 1
    blurred = {position: gain for position, gain in gains.items() if position}
    near = fmean(gain for position, gain in blurred.items() if abs(position) < 2)
    print(f"12 planes {fmean(blurred.values()):+.2f} dB, at 0.8 and 1.6 um {near:+.2f} dB,"
          f" in focus {gains[0.0]:+.2f} dB")  # fmt: skip
    print("  ".join(f"{position:+.1f} um {gain:+.2f}" for position, gain in sorted(gains.items())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
