"""One field: read the planes, lay them on each other, fuse them, label the patches, write the folder.

    planes (8-bit) -> displacement of each plane -> moved back, cropped to what all planes show -> fused -> labels

    plane_00.tif …   registered planes, 8-bit RGB, tiled, without loss
    label.tif        the all-in-focus target, the same size
    depth_um.tif     stage position of best focus per pixel, float32 µm
    preview.jpg      target and depth map, for the report
    field.json       scale, shifts, labels of the patches, what was left out: `FieldFacts`

Memory: 8-bit planes once, about 60 bytes a pixel beside them. A field of 3072 x 4096 px and 13 planes: docs/prepare.md.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from bundle.conventions import plane_positions_um
from bundle.data.focal_stacks import FocalStack
from bundle.optics.focal_stack import to_linear
from bundle.optics.fusion import FusedStack, fuse
from bundle.optics.registration import agreement, displacements, moved_by
from bundle.preparation.patches import LEAST_TISSUE, PATCH_PX, Patch, label_patches, tissue_mask
from bundle.slides.grid import Box
from bundle.slides.pyramid import Record
from bundle.slides.writer import open_sink

FEWEST_PLANES = 3  # with two, no plane is known to be sharper than both its neighbours
WINDOW_PX = 1024  # the part with the most detail tells the displacement of the whole field
MAX_SHIFT_PX = 12  # between neighbouring planes
BORDER_PX = 0.1  # below it a shift uncovers no border worth cutting
LEAST_AGREEMENT = 0.5  # of a plane with its neighbour, both laid on each other
FIELD = "field.json"
PREVIEW_PX = 360
HISTOGRAM_BINS = 4  # per plane


class FieldFacts(NamedTuple):
    """field.json."""

    slide: str
    field: str
    patient: str | None
    shape: tuple[int, int]  # (height, width) px of the written planes
    location: tuple[int, int]  # (row, col) in the source of their first pixel
    mpp: float
    spacing_um: float
    shifts_px: list[tuple[float, float]]  # per plane, (rows, cols), what was undone
    agreement: list[float]  # per plane, with its neighbour towards the middle
    depth_histogram: list[int]  # tissue pixels, HISTOGRAM_BINS per plane from half a plane below the first
    patches: list[Patch]
    left_out: dict[str, int]  # reason -> patches

    @property
    def positions_um(self) -> list[float]:
        """Stage position of each plane; the middle one is 0."""
        return [round(value, 6) for value in plane_positions_um(len(self.shifts_px), self.spacing_um).tolist()]


def prepare_field(
    stack: FocalStack, box: Box, facts: dict[str, Any], mpp: float, spacing_um: float, folder: Path
) -> FieldFacts:
    """Prepare one field into a folder that is there and empty.

    Args:
        stack: opened.
        box: the field in the stack.
        facts: slide, field and patient.
        mpp: µm per pixel.
        spacing_um: between planes.
        folder: of the results.

    Returns:
        What field.json holds.

    Raises:
        ValueError: too few planes, too small, a plane that cannot be read or does not register.
    """
    if stack.planes < FEWEST_PLANES:
        raise ValueError(f"a focal stack must have at least {FEWEST_PLANES} planes, got {stack.planes}.")
    planes = np.empty((stack.planes, 3, box.height, box.width), np.uint8)
    for index in range(stack.planes):
        planes[index] = stack.read(index, box).transpose(2, 0, 1)
    shifts, alike = find_shifts(planes)
    planes, corner = lay_on_each_other(planes, shifts)
    positions_um = plane_positions_um(stack.planes, spacing_um)
    fused = fuse(torch.from_numpy(planes), positions_um)
    target = to_pixels(fused.image.numpy())
    depth_um = fused.depth_um.numpy()
    patches, left_out = label_patches(planes, target, depth_um, fused.plane.numpy(), positions_um.numpy(), mpp)
    result = FieldFacts(
        **facts, shape=(target.shape[1], target.shape[2]), location=(box.row + corner[0], box.col + corner[1]), mpp=mpp,
        spacing_um=spacing_um, shifts_px=[(round(float(row), 3), round(float(col), 3)) for row, col in shifts],
        agreement=[round(float(one), 3) for one in alike], depth_histogram=_histogram(fused, target, stack.planes),
        patches=patches, left_out=left_out,
    )
    _write(folder, planes, target, depth_um, result)
    return result


def find_shifts(planes: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Displacement of each plane, (P, 2) px, and its agreement with its neighbour; zeros where there is no tissue.

    Raises:
        ValueError: the field is too small or a plane does not register.
    """
    if min(planes.shape[-2:]) < PATCH_PX:
        raise ValueError(f"a field must have at least {PATCH_PX} x {PATCH_PX} px, got {planes.shape[-2:]}.")
    if tissue_mask(planes[len(planes) // 2]).mean() < LEAST_TISSUE / 10:
        return np.zeros((len(planes), 2)), np.ones(len(planes))  # noise on glass: no shift could be told
    rows, columns = _detailed_window(planes[len(planes) // 2])
    light = [to_linear(torch.from_numpy(plane[:, rows, columns]).double() / 255).mean(0).numpy() for plane in planes]
    grey = np.stack(light)
    shifts = displacements(grey, MAX_SHIFT_PX)
    alike = agreement(grey, shifts)
    worst = int(alike.argmin())
    if not alike[worst] >= LEAST_AGREEMENT:
        row, col = shifts[worst]
        raise ValueError(f"every plane must register, plane {worst} agrees with its neighbour by {alike[worst]:.2f} "
                         f"after a shift of {row:.1f}, {col:.1f} px, below {LEAST_AGREEMENT}.")
    return shifts, alike


def lay_on_each_other(
    planes: NDArray[np.uint8], shifts: NDArray[np.float64]
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Planes with their displacement undone, cropped to what all of them show, and where the crop begins.

    `planes` is overwritten, so that a field is in memory once.

    Raises:
        ValueError: the planes share less than one patch.
    """
    # Reflected borders would reach the network as tissue: they are cut off, but for a tenth of a pixel.
    low = np.ceil(np.maximum(-shifts.min(0) - BORDER_PX, 0)).astype(int)
    high = np.ceil(np.maximum(shifts.max(0) - BORDER_PX, 0)).astype(int)
    height, width = planes.shape[-2:]
    if height - low[0] - high[0] < PATCH_PX or width - low[1] - high[1] < PATCH_PX:
        raise ValueError(f"planes must share at least {PATCH_PX} x {PATCH_PX} px, shifts leave "
                         f"{height - low[0] - high[0]} x {width - low[1] - high[1]}.")
    for plane, shift in zip(planes, shifts):
        if not shift.any():
            continue
        for channel in plane:
            channel[:] = to_pixels(moved_by(channel.astype(np.float32) / 255, -shift))
    inside = planes[:, :, low[0]:height - high[0], low[1]:width - high[1]]
    return inside, (int(low[0]), int(low[1]))


def to_pixels(image: NDArray[Any]) -> NDArray[np.uint8]:
    """[0, 1] -> 0..255, rounded and clipped."""
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


def read_facts(folder: Path) -> FieldFacts:
    """field.json of a finished field.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        held = json.loads((folder / FIELD).read_text(encoding="utf-8"))
        held.pop("positions_um")
        patches = [Patch(tuple(patch["location"]), patch["defocus_um"], patch["contrast"]) for patch in held["patches"]]
        facts = FieldFacts(**{**held, "patches": patches})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / FIELD} is damaged: remove {folder.name} and prepare it again.") from error
    (height, width), (row, col) = facts.shape, facts.location
    pairs = [(float(down), float(right)) for down, right in facts.shifts_px]
    return facts._replace(shape=(height, width), location=(row, col), shifts_px=pairs)


def _detailed_window(plane: NDArray[np.uint8]) -> tuple[slice, slice]:
    """The window of WINDOW_PX with the most detail of a plane (3, H, W)."""
    height, width = plane.shape[-2:]
    grey = plane[1].astype(np.float32)
    energy = np.zeros((height, width), np.float32)
    energy[:-1, :-1] = np.square(np.diff(grey, axis=0)[:, :-1]) + np.square(np.diff(grey, axis=1)[:-1])
    best, chosen = -1.0, (slice(0, height), slice(0, width))
    for row in _starts(height):
        for col in _starts(width):
            place = (slice(row, min(row + WINDOW_PX, height)), slice(col, min(col + WINDOW_PX, width)))
            if (found := float(energy[place].mean())) > best:
                best, chosen = found, place
    return chosen


def _starts(side: int) -> list[int]:
    steps = max(1, math.ceil((side - WINDOW_PX) / (WINDOW_PX // 2)) + 1)
    return [round(start) for start in np.linspace(0, max(0, side - WINDOW_PX), steps)]


def _histogram(fused: FusedStack, target: NDArray[np.uint8], planes: int) -> list[int]:
    tissue = tissue_mask(target)
    counts, _ = np.histogram(fused.plane.numpy()[tissue], HISTOGRAM_BINS * planes, (-0.5, planes - 0.5))
    return [int(count) for count in counts]


def _write(folder: Path, planes: NDArray[np.uint8], target: NDArray[np.uint8], depth_um: NDArray[np.float32],
           facts: FieldFacts) -> None:
    pictures = {f"plane_{index:02d}.tif": plane for index, plane in enumerate(planes)} | {"label.tif": target}
    for name, pixels in pictures.items():
        with open_sink(folder / name, facts.shape, Record(name, facts.mpp), block_px=max(facts.shape)) as sink:
            sink.write(0, 0, pixels.transpose(1, 2, 0))
    tifffile.imwrite(folder / "depth_um.tif", depth_um, compression="zlib", predictor=3, metadata=None, software="MoP")
    step = max(1, math.ceil(max(facts.shape) / PREVIEW_PX))
    positions_um = facts.positions_um
    share = (depth_um[::step, ::step] - positions_um[0]) / (positions_um[-1] - positions_um[0])
    coloured = colormaps["viridis"](share, bytes=True)[..., :3]
    small = Image.fromarray(target.transpose(1, 2, 0)).reduce(step)
    pair = np.hstack([np.asarray(small)[:coloured.shape[0], :coloured.shape[1]], coloured])
    Image.fromarray(pair).save(folder / "preview.jpg", quality=85)
    held = {**facts._asdict(), "positions_um": positions_um, "patches": [patch._asdict() for patch in facts.patches]}
    (folder / FIELD).write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
