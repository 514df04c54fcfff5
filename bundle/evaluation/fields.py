"""Sharp fields on disk, and the focal stack that each of them turns into.

    folder/index.json   a list of {"file", "split", "slide", "mpp", …}, files relative to the folder
    folder of images    without an index: every PNG, JPEG and TIFF in it is a field and a slide of its own
    datalist.json       a dataset of `mop prepare`: nothing is simulated, see `recorded`

The tissue of a field is uneven; its relief and the camera's noise are drawn from a seed and the file's name: the same
field gives the same planes in every run, whichever planes or fields are evaluated beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bundle.conventions import LABEL, MPP, from_uint8, plane_defocus_um
from bundle.data.datalist import is_dataset
from bundle.data.fields import INDEX, field_records
from bundle.evaluation.recorded import RecordedField, list_recorded
from bundle.optics.camera import Camera, record
from bundle.optics.focal_stack import GainTable, random_relief_um, simulate_plane
from bundle.optics.pupil import COARSE_MPP, Optics, standard_optics
from bundle.slides.grid import centred
from bundle.slides.reader import PICTURE_SUFFIXES, open_image

RELIEF_UM, JPEG_QUALITY = 0.8, 90  # of the protocol, as configs/evaluate.json has them


class Field(NamedTuple):
    """One sharp image."""

    name: str  # path in the folder, with forward slashes
    path: Path
    slide: str
    mpp: float  # of `read_field`'s pixels
    halved: bool = False  # the file's pixels are half as wide: 2 x 2 of them are averaged

    @property
    def files(self) -> list[Path]:
        """Everything that its figures depend on."""
        return [self.path]

    @property
    def folder(self) -> str:
        """Under which name images of other methods are looked for."""
        return Path(self.name).with_suffix("").as_posix().replace("/", "__")


def list_fields(
    folder: str | Path, split: str = "test", mpp: float = 0.25, at_20x: bool = False
) -> list[Field] | list[RecordedField]:
    """The fields of `folder` in the order of their names; of a dataset of `mop prepare` its recorded fields.

    Args:
        folder: with a datalist.json, with an index.json or without any list.
        split: which entries of the index to take; "all" takes every one. Without an index all images are taken.
        mpp: µm per pixel of images without an index.
        at_20x: show fields of 40x as 20x does, 2 x 2 pixels averaged and their mpp doubled.

    Raises:
        FileNotFoundError: no such folder, or a file of the index is absent.
        ValueError: there is no field of this split, or one of its slides is in another split too; `at_20x` of
            recorded fields.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"the fields must be a folder, not found: {folder}.")
    if is_dataset(folder):
        if at_20x:
            raise ValueError(f"at_20x is for sharp fields, but {folder} holds recorded planes.")
        return list_recorded(folder, split)
    fields = _sharp_fields(folder, split, mpp)
    return [field._replace(mpp=2 * field.mpp, halved=True) if at_20x and field.mpp < COARSE_MPP else field
            for field in fields]


def _sharp_fields(folder: Path, split: str, mpp: float) -> list[Field]:
    """The fields as their files show them."""
    index = folder / INDEX
    if not index.is_file():
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
        if not files:
            raise ValueError(f"a folder of fields must hold {INDEX} or images, {folder} holds neither.")
        return [Field(path.name, path, path.stem, mpp) for path in files]
    known = sorted({entry["split"] for entry in json.loads(index.read_text(encoding="utf-8"))})
    if split not in ("all", *known):
        raise ValueError(f"split must be all or one of {known}, got {split}.")
    records = [record for one in (known if split == "all" else [split]) for record in field_records(folder, one)]
    paths = [Path(record[LABEL]) for record in records]
    names = [path.relative_to(folder).as_posix() for path in paths]
    return sorted(Field(*row) for row in zip(names, paths, (r["slide"] for r in records), (r[MPP] for r in records)))


def read_field(field: Field, crop_px: int = 0) -> Tensor:
    """The sharp image, (3, H, W) in [0, 1]; `crop_px` > 0 keeps a centred square of at most that side."""
    in_file = 2 if field.halved else 1  # pixels of the file along a side of one
    with open_image(field.path) as image:
        (row, height), (col, width) = (centred(side, in_file * crop_px) for side in image.shape)
        pixels = torch.from_numpy(image.read(row, col, height, width)).permute(2, 0, 1)
    if field.halved:
        pixels = functional.avg_pool2d(pixels[None].float(), 2)[0].round().to(torch.uint8)
    return from_uint8(pixels).contiguous()


@lru_cache(maxsize=8)
def _gain_table(optics: Optics) -> GainTable:
    """A table takes seconds to compute, and the fields of a folder share one or two scales."""
    return GainTable(optics)


class FocalField:
    """A sharp field on uneven tissue, at any stage position."""

    def __init__(self, field: Field, sharp: Tensor, relief_um: float, camera: Camera, seed: int) -> None:
        """Draw the relief.

        Args:
            field: which one; its name seeds the relief and the noise.
            sharp: (3, H, W), [0, 1].
            relief_um: the tissue's surface spans -relief_um to relief_um.
            camera: what is added to each plane.
            seed: of the whole evaluation.
        """
        self.field, self.sharp, self.camera, self.seed = field, sharp, camera, seed
        self.table = _gain_table(standard_optics(field.mpp))
        height, width = sharp.shape[-2:]
        self.relief_um = random_relief_um(height, width, relief_um, self._generator("relief")).to(sharp.device)

    def plane(self, position_um: float) -> Tensor:
        """What the scanner writes with the stage at `position_um`, (3, H, W) in [0, 1], 8-bit values."""
        clean = simulate_plane(self.sharp, position_um, self.relief_um, self.table)
        return record(clean, self.camera, self._generator(f"plane {position_um:.3f}"))

    def plane_name(self, position_um: float) -> str:
        """Under which name an image of another method is looked for."""
        return f"plane_{position_um:+.2f}um"

    def defocus_um(self, position_um: float) -> Tensor:
        """Signed defocus of every pixel of that plane, (H, W)."""
        return torch.as_tensor(plane_defocus_um(position_um, self.relief_um))

    def _generator(self, purpose: str) -> torch.Generator:
        # The file's name without its folder: a field has the same planes with and without an index
        text = f"{self.seed} {Path(self.field.name).name} {purpose}"
        digest = hashlib.sha256(text.encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def focal_tiles(fields: Sequence[Field | RecordedField], tile_px: int, every: int = 1) -> list[FocalField]:
    """Every so many square tiles of the fields, row by row; optics of `make evaluate`, one relief for each field.

    Raises:
        ValueError: no field holds a tile, or they are recorded planes.
    """
    tiles = []
    for field in fields:
        if isinstance(field, RecordedField):
            raise ValueError(f"tiles are cut out of sharp fields, but {field.name} is a recorded one.")
        sharp = read_field(field)
        for row in range(0, sharp.shape[-2] - tile_px + 1, tile_px):
            for col in range(0, sharp.shape[-1] - tile_px + 1, tile_px):
                tiles.append((field, sharp[:, row:row + tile_px, col:col + tile_px]))
    if not tiles:
        raise ValueError(f"one of the fields must be {tile_px} px or more in height and width, all are smaller.")
    return [FocalField(*tile, RELIEF_UM, Camera(jpeg_quality=JPEG_QUALITY), 0) for tile in tiles[::every]]
