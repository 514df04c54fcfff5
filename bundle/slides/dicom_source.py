"""The levels of a finished pyramid as wsidicomizer wants a slide: JPEG tiles that go into DICOM byte by byte.

wsidicomizer's own sources would decode and encode every tile once more, or need the system's libturbojpeg.
Importing wsidicomizer makes pydicom strict for the whole process: import this module as dicom_writer.py does.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, NamedTuple

import tifffile
from PIL.Image import Image
from PIL.Image import open as open_image
from pydicom.uid import UID, JPEGBaseline8Bit
from wsidicom.codec import Encoder
from wsidicom.geometry import Point, Size, SizeMm
from wsidicom.instance import WsiInstance
from wsidicom.metadata import ImageType, LossyCompression, WsiMetadata
from wsidicom.metadata.image import LossyCompressionIsoStandard
from wsidicomizer.dicomizer_source import DicomizerSource
from wsidicomizer.image_data import BaseDicomizerImageData
from wsidicomizer.metadata import WsiDicomizerMetadata


class Tiles(NamedTuple):
    """Where the tiles of a level lie in the file, row by row."""

    shape: tuple[int, int]  # (height, width) px of the level
    tile_px: int
    offsets: tuple[int, ...]
    counts: tuple[int, ...]  # bytes


class LevelData(BaseDicomizerImageData):
    """One level of `PyramidSource`.

    Args:
        fd: of the file, open for reading.
        tiles: of the level.
        spacing: mm per pixel.
        encoder: what the base class wants; the tiles are encoded already.
    """

    transfer_syntax = JPEGBaseline8Bit
    photometric_interpretation = "YBR_FULL_422"  # DICOM's word for JPEG's YCbCr, 4:2:0 too
    samples_per_pixel = 3
    thread_safe = True  # pread has no place that threads could share
    transcoder = None
    imaged_size = None

    def __init__(self, fd: int, tiles: Tiles, spacing: SizeMm, encoder: Encoder) -> None:
        super().__init__(encoder)
        self._fd, self._tiles, self._spacing = fd, tiles, spacing

    @property
    def pixel_spacing(self) -> SizeMm:
        return self._spacing

    @property
    def image_size(self) -> Size:
        return Size(self._tiles.shape[1], self._tiles.shape[0])

    @property
    def tile_size(self) -> Size:
        return Size(self._tiles.tile_px, self._tiles.tile_px)

    @property
    def lossy_compression(self) -> list[LossyCompression]:
        raw = len(self._tiles.counts) * self._tiles.tile_px**2 * 3
        return [LossyCompression(LossyCompressionIsoStandard.JPEG_LOSSY, round(raw / sum(self._tiles.counts), 2))]

    def get_encoded_tile(self, tile: Point, z: float, path: str) -> bytes:
        index = tile.y * -(-self._tiles.shape[1] // self._tiles.tile_px) + tile.x
        return os.pread(self._fd, self._tiles.counts[index], self._tiles.offsets[index])

    def get_decoded_tile(self, tile_point: Point, z: float, path: str) -> Image:
        with open_image(io.BytesIO(self.get_encoded_tile(tile_point, z, path))) as tile:
            return tile.convert("RGB")


class PyramidSource(DicomizerSource):
    """A JPEG pyramid of pyramid.py, encoded without shared tables.

    Args:
        filepath: of the pyramid.
        encoder, tile_size, metadata, rest: see `DicomizerSource`; the metadata name the pixel size.
    """

    def __init__(self, filepath: Path, encoder: Encoder, tile_size: int | None, metadata: WsiMetadata, *rest: Any,
                 **named: Any) -> None:
        super().__init__(filepath, encoder, tile_size, metadata, *rest, **named)
        self._spacing = metadata.pyramid.image.pixel_spacing
        with tifffile.TiffFile(filepath) as tiff:
            pages = [level.pages[0].aspage() for level in tiff.series[0].levels]
            self._levels = [
                Tiles((page.imagelength, page.imagewidth), page.tilewidth, page.dataoffsets, page.databytecounts)
                for page in pages
            ]
        self._fd = os.open(filepath, os.O_RDONLY)

    @staticmethod
    def is_supported(path: Path) -> bool:
        return True

    @property
    def base_metadata(self) -> WsiDicomizerMetadata:
        return WsiDicomizerMetadata()

    @property
    def pyramid_levels(self) -> dict[tuple[int, float, str], int]:
        return {(k, 0.0, "0"): k for k in range(len(self._levels))}

    def _create_level_image_data(self, level_index: int) -> BaseDicomizerImageData:
        tiles = self._levels[level_index]
        zoom = self._levels[0].shape[1] / tiles.shape[1]
        spacing = SizeMm(self._spacing.width * zoom, self._spacing.height * zoom)
        return LevelData(self._fd, tiles, spacing, self._encoder)

    def _create_instance(self, image_data: LevelData, image_type: ImageType, pyramid_index: int | None = None
                         ) -> WsiInstance:  # fmt: skip
        instance = super()._create_instance(image_data, image_type, pyramid_index)
        # wsidicom calls the finest level ORIGINAL: what a scanner recorded. This one was computed.
        dataset = instance.dataset
        dataset.ImageType = ["DERIVED", *dataset.ImageType[1:]]
        frames = dataset.SharedFunctionalGroupsSequence[0].WholeSlideMicroscopyImageFrameTypeSequence[0]
        frames.FrameType = dataset.ImageType
        return instance

    def _create_label_image_data(self) -> None:
        return None

    def _create_overview_image_data(self) -> None:
        return None

    def _create_thumbnail_image_data(self) -> None:
        return None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def uid_of(digest: bytes) -> UID:
    """A UID of the root that needs no registration, from the first 16 bytes of a digest."""
    from uuid import UUID

    return UID(f"2.25.{UUID(bytes=digest[:16], version=4).int}")
