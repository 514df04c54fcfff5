"""Images that another method restored, scored by the same protocol: a folder is all that is known of it.

    FOLDER/<field>/<plane>.png (or .tif, .jpg)     8-bit RGB of the plane's size

Of a dataset of `mop prepare`, field and plane are called as there: `35_32/plane_00.png`. Planes that the protocol
simulates are written by `write_inputs`, under the names that their restorations must have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bundle.conventions import from_uint8, to_uint8
from bundle.slides.reader import JPEG_SUFFIXES, TIFF_SUFFIXES, open_image
from bundle.slides.whole_files import replace_when_done

if TYPE_CHECKING:
    from bundle.evaluation.scores import Stack

SUFFIXES = (".png", *TIFF_SUFFIXES, *JPEG_SUFFIXES)  # of two files of a plane the one that lost nothing


class RestoredImages:
    """The images of one method.

    Args:
        folder: with a folder for each field.

    Raises:
        FileNotFoundError: no such folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"restored images must be in a folder, not found: {self.folder}.")

    def read(self, stack: Stack, position_um: float, image: Tensor) -> Tensor:
        """The restoration of a plane, (3, H, W) in [0, 1] on the device of `image`, the plane itself.

        Raises:
            FileNotFoundError: there is none.
            ValueError: its size is not that of the plane.
        """
        path = self._path(stack.field.folder, stack.plane_name(position_um))
        with open_image(path) as reader:
            if reader.shape != tuple(image.shape[-2:]):
                raise ValueError(f"a restored image must have the size of its plane, {tuple(image.shape[-2:])}, "
                                 f"{path} has {reader.shape}.")
            pixels = reader.read(0, 0, *reader.shape)
        return from_uint8(torch.from_numpy(pixels).permute(2, 0, 1)).contiguous().to(image.device)

    def sha256(self, field: str) -> str:
        """Changes with any image of a field."""
        digest = hashlib.sha256()
        for path in sorted((self.folder / field).glob("*")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()

    def _path(self, field: str, plane: str) -> Path:
        for suffix in SUFFIXES:
            if (path := self.folder / field / f"{plane}{suffix}").is_file():
                return path
        raise FileNotFoundError(f"a method must have restored every plane, {self.folder / field} lacks {plane} "
                                f"({', '.join(SUFFIXES)}).")


def write_inputs(stack: Stack, positions_um: Sequence[float], folder: Path) -> None:
    """The planes of a field as PNG, for other methods to restore: `FOLDER/<field>/<plane>.png`."""
    for position_um in positions_um:
        pixels = to_uint8(stack.plane(position_um)).permute(1, 2, 0).cpu().numpy()
        with replace_when_done(folder / stack.field.folder / f"{stack.plane_name(position_um)}.png", True) as file:
            Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
