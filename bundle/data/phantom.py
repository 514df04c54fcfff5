"""Synthetic H&E-like tissue, for tests and the smoke training: drawn by formulas, so that no real data is needed.

    eosin           amount of eosin per pixel: cytoplasm and fibres, texture from 1 px to 64 px
    hematoxylin     amount of hematoxylin: nuclei, ellipses with chromatin and a sharp rim
    tissue          share of the pixel that is tissue, [0, 1]; lumina are glass
    rgb             10 ** -(eosin * EOSIN + hematoxylin * HEMATOXYLIN): stains multiply (Beer-Lambert)

Detail reaches the Nyquist frequency: every defocus, however small, takes something away. What is trained on it knows
nothing of real tissue.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from bundle.conventions import to_uint8

# Optical density of each stain in R, G, B, unit length (after Ruifrok and Johnston 2001, eosin warmed).
HEMATOXYLIN = (0.65, 0.70, 0.29)
EOSIN = (0.09, 0.95, 0.30)
GLASS = 0.96  # sRGB of an empty place
NUCLEUS_AREA_PX = 1600  # tissue area per nucleus


def tissue_phantom(height: int, width: int, generator: torch.Generator) -> Tensor:
    """One field of synthetic tissue, (3, H, W) float32 sRGB [0, 1]; 512 x 512 px take about 0.2 s.

    Args:
        height, width: px.
        generator: on the CPU; the same state gives the same field.

    Raises:
        ValueError: a side is not positive.
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be positive, got {height} and {width}.")
    eosin = 0.30 + 0.07 * _texture(height, width, (1, 2, 4, 8, 16, 64), generator)
    fibres = _texture(height, width, (3, 12), generator)
    eosin = eosin + 0.10 * torch.exp(-(fibres / 0.15).square())  # thin lines along the zeros of smooth noise
    hematoxylin = 0.05 + 0.02 * _texture(height, width, (2, 32), generator)
    _add_nuclei(hematoxylin, eosin, generator)
    relief = _texture(height, width, (24, 96), generator)
    tissue = torch.sigmoid((relief + 1.3) / 0.02)  # edges of lumina are one or two pixels wide
    strength = 0.85 + 0.3 * torch.rand(2, generator=generator)
    stains = torch.stack([hematoxylin * strength[0], eosin * strength[1]]).clamp(min=0) * tissue
    density = torch.einsum("sc,shw->chw", torch.tensor([HEMATOXYLIN, EOSIN]), stains)
    return (GLASS * 10**-density).clamp(0, 1)


def write_phantom_fields(folder: str | Path, train: int = 4, val: int = 2, test: int = 2, size_px: int = 512,
                         seed: int = 0) -> str:
    """Write a folder of sharp fields with its index: `<split>/phantom_NNN.png` and `index.json`, one slide per field.

    Args:
        folder: made if missing; fields of the same name are replaced.
        train, val, test: fields of each split.
        size_px: side of the square fields.
        seed: of the first field; the same seed writes the same files.

    Returns:
        The folder, so that a config can name this call where it needs a data set.

    Raises:
        ValueError: a count is negative or all are zero.
    """
    counts = {"train": train, "val": val, "test": test}
    if min(counts.values()) < 0 or not any(counts.values()):
        raise ValueError(f"train, val and test must be zero or more and not all zero, got {train}, {val} and {test}.")
    records: list[dict[str, Any]] = []
    for split, count in counts.items():
        (Path(folder) / split).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            number = len(records)
            field = tissue_phantom(size_px, size_px, torch.Generator().manual_seed(seed + number))
            pixels = to_uint8(field).permute(1, 2, 0).numpy()
            name = f"{split}/phantom_{number:03d}.png"
            Image.fromarray(pixels).save(Path(folder) / name)
            records.append(_record(name, split, number, pixels))
    (Path(folder) / "index.json").write_text(json.dumps(records, indent=1) + "\n")
    return str(folder)


def _record(name: str, split: str, number: int, pixels: np.ndarray) -> dict[str, Any]:
    """Entry of the index, in the form of an index of real fields."""
    sharpness = float(ndimage.laplace(pixels.mean(2)).var())
    return {"file": name, "split": split, "width": pixels.shape[1], "height": pixels.shape[0],
            "source": "bundle.data.phantom", "licence": "Apache-2.0", "stain": "H&E", "organ": "synthetic",
            "slide": f"phantom-{number:03d}", "mpp": 0.25, "laplacian_variance": round(sharpness, 1),
            "note": "drawn by formulas: no tissue"}


def _texture(height: int, width: int, scales_px: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Noise with equal power at every scale, (H, W), mean 0, deviation about 1."""
    total = torch.zeros(height, width)
    for scale in scales_px:
        nodes = (math.ceil(height / scale) + 3, math.ceil(width / scale) + 3)
        noise = torch.randn(1, 1, *nodes, generator=generator)
        if scale > 1:
            noise = functional.interpolate(noise, scale_factor=scale, mode="bicubic", align_corners=False)
        total += noise[0, 0, scale:scale + height, scale:scale + width]
    return total / math.sqrt(0.6 * len(scales_px))


def _add_nuclei(hematoxylin: Tensor, eosin: Tensor, generator: torch.Generator) -> None:
    """Draw ellipses of chromatin with a dark rim into `hematoxylin`, in place; nuclei displace eosin."""
    height, width = hematoxylin.shape
    chromatin = _texture(height, width, (1, 2, 4), generator)
    count = math.ceil(height * width / NUCLEUS_AREA_PX)
    drawn = torch.rand(count, 6, generator=generator)
    for row, column, long, round_, turn, dark in drawn.tolist():
        centre_row, centre_column = row * height, column * width
        long_px = 6 + 9 * long
        short_px = long_px * (0.5 + 0.45 * round_)
        reach = math.ceil(long_px) + 2
        top, left = max(0, int(centre_row) - reach), max(0, int(centre_column) - reach)
        place = (slice(top, min(height, int(centre_row) + reach)), slice(left, min(width, int(centre_column) + reach)))
        rows = (torch.arange(place[0].start, place[0].stop) - centre_row)[:, None]
        columns = (torch.arange(place[1].start, place[1].stop) - centre_column)[None, :]
        cosine, sine = math.cos(math.pi * turn), math.sin(math.pi * turn)
        radius = torch.hypot((columns * cosine + rows * sine) / long_px, (rows * cosine - columns * sine) / short_px)
        inside = torch.sigmoid((1 - radius) * short_px * 3)  # the rim is as sharp as a pixel allows
        rim = torch.exp(-((radius - 0.93) * short_px).square())
        amount = (0.45 + 0.35 * dark) * (1 + 0.22 * chromatin[place]) + 0.25 * rim
        hematoxylin[place] = hematoxylin[place] * (1 - inside) + inside * amount
        eosin[place] = eosin[place] * (1 - 0.5 * inside)
