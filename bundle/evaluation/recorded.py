"""Recorded focal stacks of a dataset of `mop prepare`, evaluated in the place of simulated ones.

    sharp      the all-in-focus target that was fused of the planes
    plane      as registered by `mop prepare`; named by its position on the stage, µm, the middle plane is 0
    defocus    position minus the fused depth map, per pixel
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bundle.conventions import IMAGE, LABEL, MPP, from_uint8, plane_defocus_um
from bundle.data.datalist import DEPTH, SPLITS, plane_records
from bundle.data.recorded_patches import read_depth_um
from bundle.slides.grid import centred
from bundle.slides.reader import open_image

DIGITS = 3  # of a position in µm


class RecordedField(NamedTuple):
    """One field of a dataset."""

    name: str  # its folder
    path: Path  # of its target
    slide: str
    mpp: float
    depth: Path
    planes: dict[float, Path]  # position, µm -> file, from the lowest

    @property
    def files(self) -> list[Path]:
        """Everything that its figures depend on."""
        return [self.path, self.depth, *self.planes.values()]

    @property
    def folder(self) -> str:
        """Under which name images of other methods are looked for."""
        return self.name


def list_recorded(dataset: str | Path, split: str) -> list[RecordedField]:
    """The fields of one split of a dataset, in the order of the datalist.

    Args:
        dataset: folder with a datalist.json.
        split: test, val or train; "all" takes every one.

    Raises:
        FileNotFoundError: a file of the list is missing.
        ValueError: unknown or empty split, a leak, a damaged list.
    """
    if split not in ("all", *SPLITS):
        raise ValueError(f"split must be all or one of {sorted(SPLITS)}, got {split}.")
    fields: dict[str, list[dict]] = defaultdict(list)
    for one in SPLITS if split == "all" else [split]:
        for record in plane_records(dataset, SPLITS[one]):
            fields[record["field"]].append(record)
    return [RecordedField(
        name, Path(records[0][LABEL]), records[0]["slide"], float(records[0][MPP]), Path(records[0][DEPTH]),
        {round(float(one["position_um"]), DIGITS): Path(one[IMAGE])
         for one in sorted(records, key=lambda one: one["position_um"])}) for name, records in fields.items()]


def shared_positions_um(fields: Sequence[RecordedField]) -> list[float]:
    """The positions of the planes, which all fields must have: figures are averaged plane by plane.

    Raises:
        ValueError: two fields have different planes.
    """
    first = fields[0]
    for field in fields:
        if list(field.planes) != list(first.planes):
            raise ValueError(f"fields must have the same planes to be averaged, {first.name} has {list(first.planes)} "
                             f"µm and {field.name} {list(field.planes)}: name those to evaluate as positions_um.")
    return list(first.planes)


class RecordedStack:
    """A recorded field as the protocol sees it; see `FocalField`.

    Args:
        field: which one.
        crop_px: side of the centred square to keep, 0 for all of it.
        device: where its images go.

    Raises:
        ImageError: an image is damaged.
    """

    def __init__(self, field: RecordedField, crop_px: int, device: torch.device) -> None:
        self.field, self.crop_px, self.device = field, crop_px, device
        self.sharp = self._read(field.path)
        with open_image(field.path) as target:
            rows, cols = (slice(start, start + length)
                          for start, length in (centred(side, crop_px) for side in target.shape))
        self.depth_um = torch.from_numpy(read_depth_um(field.depth, rows, cols)).to(device)

    def plane(self, position_um: float) -> Tensor:
        """What the scanner recorded at `position_um`, (3, H, W) in [0, 1].

        Raises:
            ValueError: there is no plane at this position, or it differs in size from the target.
        """
        plane = self._read(self._file(position_um))
        if plane.shape != self.sharp.shape:
            raise ValueError(f"a plane must have the size of its target, {tuple(self.sharp.shape[1:])}, "
                             f"{self._file(position_um)} has {tuple(plane.shape[1:])}.")
        return plane

    def plane_name(self, position_um: float) -> str:
        """Under which name an image of another method is looked for."""
        return self._file(position_um).stem

    def defocus_um(self, position_um: float) -> Tensor:
        """Signed defocus of every pixel of that plane, (H, W)."""
        return torch.as_tensor(plane_defocus_um(position_um, self.depth_um))

    def _file(self, position_um: float) -> Path:
        file = self.field.planes.get(round(position_um, DIGITS))
        if file is None:
            raise ValueError(f"positions_um must be planes of every field, {self.field.name} has "
                             f"{list(self.field.planes)} µm and none at {position_um:.3f}.")
        return file

    def _read(self, path: Path) -> Tensor:
        with open_image(path) as image:
            (row, height), (col, width) = (centred(side, self.crop_px) for side in image.shape)
            pixels = image.read(row, col, height, width)
        return from_uint8(torch.from_numpy(pixels).permute(2, 0, 1)).contiguous().to(self.device)
