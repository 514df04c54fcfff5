"""A slide as OME-Zarr 0.5: a folder with one sharded zarr array a level, without loss.

    NAME.ome.zarr/zarr.json    the levels, their scales in µm, what the file says beside its pixels
    NAME.ome.zarr/0, 1, …      uint8 (3, H, W), shards of SHARD_PX, in them chunks of CHUNK_PX, zstd

A shard is read, written and halved on its own: memory does not depend on the slide.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from bundle.slides.grid import Box
from bundle.slides.pyramid import Record, halved, level_shapes
from bundle.slides.whole_files import folder_when_done, refuse_folder
from bundle.slides.writer import LedgerSink

CHUNK_PX, SHARD_PX = 512, 2048
MARK = "zarr.json"  # every OME-Zarr holds it: only a folder with it is ever replaced


class ZarrSink(LedgerSink):
    """OME-Zarr with levels; see `LedgerSink`."""

    def _refuse_existing(self) -> None:
        refuse_folder(self.path, MARK, self.overwrite)

    def _save(self) -> None:
        with folder_when_done(self.path, MARK, self.overwrite, self.ledger.folder) as folder:
            self._write(folder)

    def _write(self, folder: Path) -> None:
        shapes = level_shapes(self.shape)
        group = zarr.create_group(folder, zarr_format=3, attributes=metadata_of(self.record, shapes))
        levels: list[Any] = []
        for k, (height, width) in enumerate(shapes):
            shard = tuple(min(SHARD_PX, -(-side // CHUNK_PX) * CHUNK_PX) for side in (height, width))
            levels.append(group.create_array(
                str(k), shape=(3, height, width), chunks=(3, CHUNK_PX, CHUNK_PX), shards=(3, *shard), dtype="uint8",
                compressors=ZstdCodec(level=3), dimension_names=("c", "y", "x"),
            ))  # fmt: skip
        for k, level in enumerate(levels):
            height, width = shapes[k]
            for row, col in itertools.product(range(0, height, SHARD_PX), range(0, width, SHARD_PX)):
                box = Box(row, col, SHARD_PX, SHARD_PX).overlap(Box(0, 0, height, width))
                pixels = self.read(*box) if k == 0 else _halved_from(levels[k - 1], box)
                level[:, box.row : box.bottom, box.col : box.right] = pixels.transpose(2, 0, 1)
                if k == 0:
                    self._tell_rows(box.bottom)


def _halved_from(finer: Any, box: Box) -> NDArray[np.uint8]:
    held = finer[:, 2 * box.row : 2 * box.bottom, 2 * box.col : 2 * box.right]
    return halved(np.ascontiguousarray(held.transpose(1, 2, 0)))


def metadata_of(record: Record, shapes: list[tuple[int, int]]) -> dict[str, Any]:
    """The attributes of an OME-Zarr 0.5 image; see ngff.openmicroscopy.org/0.5."""
    mpp = record.mpp or 1.0
    unit = {"unit": "micrometer"} if record.mpp else {}
    datasets = []
    for k in range(len(shapes)):
        # A pixel of level k covers 2**k of level 0: its centre lies half of the others further in.
        scale, shift = mpp * 2**k, mpp * (2**k - 1) / 2
        transformations = [{"type": "scale", "scale": [1.0, scale, scale]},
                           {"type": "translation", "translation": [0.0, shift, shift]}]  # fmt: skip
        datasets.append({"path": str(k), "coordinateTransformations": transformations})
    axes = [{"name": "c", "type": "channel"}, *({"name": axis, "type": "space"} | unit for axis in "yx")]
    channels = [
        {"label": name, "color": colour, "active": True, "window": {"start": 0, "end": 255, "min": 0, "max": 255}}
        for name, colour in (("red", "FF0000"), ("green", "00FF00"), ("blue", "0000FF"))
    ]
    pyramid = {"name": record.name, "axes": axes, "datasets": datasets, "type": "mean of 2 x 2"}
    ome = {"version": "0.5", "multiscales": [pyramid], "omero": {"channels": channels, "rdefs": {"model": "color"}}}
    profile = {"icc_profile": record.icc_profile.hex()} if record.icc_profile else {}
    return {"ome": ome, "mop": {**record.notes, **profile}}
