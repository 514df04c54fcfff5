"""A focal stack of a sharp image on disk: planes as PNG, the relief in µm, and what was drawn."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import tifffile
import torch
from PIL import Image
from torch import Tensor

from bundle import __version__
from bundle.conventions import from_uint8, plane_positions_um, to_uint8
from bundle.optics.camera import Camera, record
from bundle.optics.focal_stack import GainTable, random_relief_um, simulate_plane
from bundle.optics.pupil import standard_optics
from bundle.slides.reader import ImageReader
from bundle.slides.whole_files import folder_when_done

MAX_PIXELS = 50_000_000  # of a simulated image: one plane's spectrum takes about 100 bytes a pixel
DRAWN = "drawn.json"


class StackPlan(NamedTuple):
    """What a person chooses of a stack."""

    planes: int = 13
    spacing_um: float = 0.8
    mpp: float = 0.25  # picks the objective: NA 0.75 below 0.36 µm per px, else NA 0.4
    depth_um: float = 2.0  # the relief reaches from minus this to this, µm of stage travel
    seed: int = 0


def simulate_image(reader: ImageReader, plan: StackPlan, folder: Path, overwrite: bool = False) -> None:
    """Simulate `reader`'s planes into a new folder: plane_00.png …, relief_um.tif, drawn.json.

    Args:
        reader: a sharp image.
        plan: planes, optics and seed.
        folder: made whole or not at all.
        overwrite: replace a folder that an earlier run made.

    Raises:
        ValueError: the image is too large or a number of the plan is out of range.
    """
    height, width = reader.shape
    if height * width > MAX_PIXELS:
        raise ValueError(f"a simulated image may have up to {MAX_PIXELS} px, {reader.path.name} has {height * width}.")
    if plan.depth_um < 0:
        raise ValueError(f"depth_um must not be negative, got {plan.depth_um}.")
    optics = standard_optics(plan.mpp)
    positions_um = plane_positions_um(plan.planes, plan.spacing_um)
    reach_um = max(1.0, math.ceil(float(positions_um.abs().max()) + plan.depth_um))
    table = GainTable(optics, reach_um=float(reach_um))
    generator = torch.Generator().manual_seed(plan.seed)
    relief_um = random_relief_um(height, width, plan.depth_um, generator)
    sharp = from_uint8(torch.from_numpy(reader.read(0, 0, height, width)).permute(2, 0, 1).contiguous())
    camera = Camera(jpeg_quality=0)  # PNG planes: compression is the user's choice
    drawn = {
        "image": reader.path.name,
        "software": f"MoP {__version__}",
        "plan": plan._asdict(),
        "positions_um": [round(position, 6) for position in positions_um.tolist()],
        "relief_median_um": float(relief_um.median()),
        "optics": optics._asdict(),
        "camera": camera._asdict(),
    }
    with folder_when_done(folder, DRAWN, overwrite) as unfinished:
        for index, position_um in enumerate(positions_um.tolist()):
            plane = record(simulate_plane(sharp, position_um, relief_um, table), camera, generator)
            _write_png(plane, unfinished / f"plane_{index:02d}.png")
        tifffile.imwrite(unfinished / "relief_um.tif", relief_um.numpy(), metadata=None, software="MoP")
        (unfinished / DRAWN).write_text(json.dumps(drawn, indent=2) + "\n", encoding="utf-8")


def _write_png(image: Tensor, path: Path) -> None:
    Image.fromarray(to_uint8(image).permute(1, 2, 0).contiguous().numpy()).save(path)
