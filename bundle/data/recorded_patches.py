"""Random patches of recorded focal stacks: a plane, its target and their labels, read from disk when they are drawn.

A dataset of a thousand fields and 13 planes does not fit into memory, and its planes are written in tiles: only those
under a patch are decoded. Every call opens the files anew, so that loader processes share no handle.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
import zarr
from monai.transforms import Randomizable, Transform
from numpy.typing import NDArray
from torch import Tensor

from bundle.conventions import CONTRAST, DEFOCUS_UM, IMAGE, LABEL, MPP, plane_defocus_um
from bundle.data.datalist import DEPTH, LOCATION
from bundle.data.stain import RandStainNA, RandStainNAd
from bundle.optics.contrast import contrast_value
from bundle.slides.reader import ImageError, open_image, reason_of


class ReadRandPatchd(Randomizable, Transform):
    """A record of `plane_records` -> one of its patches, or a random part of one.

    Args:
        size_px: side of what comes out; a whole patch has the labels of the datalist, a part gets its own.
    """

    def __init__(self, size_px: int) -> None:
        self.size_px = size_px

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Record with `image` and `label` (3, size_px, size_px) uint8, `defocus_um`, `contrast`, `mpp`, `file`.

        Raises:
            ValueError: patches of the dataset are smaller than `size_px`, or an image is damaged.
        """
        spare = data["patch_px"] - self.size_px
        if spare < 0:
            raise ValueError(f"patch_px must be at most the {data['patch_px']} px of the dataset's patches, got "
                             f"{self.size_px}.")
        place = self.R.randint(len(data[LOCATION]))
        row, col = (int(start + self.R.randint(spare + 1)) for start in data[LOCATION][place])
        image, label = (_read(data[key], row, col, self.size_px) for key in (IMAGE, LABEL))
        defocus_um, contrast = data[DEFOCUS_UM][place], data[CONTRAST][place]
        if spare:
            defocus_um = plane_defocus_um(data["position_um"], median_depth_um(data[DEPTH], row, col, self.size_px))
            contrast = contrast_value(image[None] / 255, label[None] / 255, data[MPP])
        return {IMAGE: image, LABEL: label, DEFOCUS_UM: float(defocus_um), CONTRAST: float(contrast),
                MPP: float(data[MPP]), "file": data["file"]}


class RandStainPaird(RandStainNAd):
    """RandStainNA on pairs: one change of colour for a plane and its target, which differ in how much detail they show.

    Changed apart, the paler colours of a defocused plane would be stretched more than those of its target, and its lost
    contrast with them. Arguments as `RandStainNAd`.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:  # type: ignore[override]
        """Record with images (3, H, W) in drawn colours."""
        record = dict(data)
        images = [torch.as_tensor(record[key]) for key in self.key_iterator(record)]
        joined = torch.as_tensor(RandStainNA.__call__(self, torch.cat(images, 1)))  # its colours are those of the pair
        halves = joined.split([image.shape[1] for image in images], 1)
        return record | dict(zip(self.key_iterator(record), halves, strict=True))


def _read(path: str, row: int, col: int, size_px: int) -> Tensor:
    """A square of an 8-bit image, (3, size_px, size_px) uint8."""
    with open_image(path) as image:
        return torch.from_numpy(image.read(row, col, size_px, size_px)).permute(2, 0, 1).contiguous()


def median_depth_um(path: str, row: int, col: int, size_px: int) -> float:
    """Stage position of best focus of a square of a depth map, µm; only the strips that hold it are decoded."""
    return float(np.median(read_depth_um(path, slice(row, row + size_px), slice(col, col + size_px))))


def read_depth_um(path: str | Path, rows: slice, cols: slice) -> NDArray[np.float32]:
    """A rectangle of a depth map, µm, (H, W) float32.

    Raises:
        ImageError: the file is damaged.
    """
    try:
        with tifffile.imread(path, aszarr=True) as store:
            held = zarr.open(store, mode="r")
            assert isinstance(held, zarr.Array)
            return np.asarray(held[rows, cols], np.float32)
    # What tifffile, zarr and the decoder raise for cut and foreign files.
    except (ValueError, OSError, LookupError, RuntimeError, AssertionError) as error:
        raise ImageError(f"the depth map {path} cannot be read: {reason_of(error)}.") from error
