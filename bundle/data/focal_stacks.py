"""Focal stacks on disk -> planes in memory: one reader per form of source, one interface for all.

    form          one stack is                                      scale from
    planes        image files whose names differ in the plane        TIFF tags (mpp), the options
    simulated     a folder that `mop simulate` made                  drawn.json
    tiff          the pages, or the Z axis, of one TIFF or OME-TIFF  OME or ImageJ metadata, the options
    nifti         one NIfTI volume of 8-bit RGB                      its voxel size, the options
    dicom         the files of one series of slide microscopy        its pixel and plane spacing

Planes are counted in the order of the stage: plane 0 is the lowest. Opening a stack reads its header alone.
"""

from __future__ import annotations

import json
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bundle.slides.grid import Box
from bundle.slides.reader import RASTER_SUFFIXES, ImageError, open_image, reason_of
from bundle.slides.tiff_reader import TiffReader

DRAWN = "drawn.json"  # of a folder that `mop simulate` made
UM_PER_MM = 1e3


class StackSource(NamedTuple):
    """A focal stack that was found and is not opened yet."""

    form: str  # key of READERS
    files: tuple[Path, ...]  # plane files in their order, or the file or files that hold the stack
    slide: str
    field: str  # "" where the slide has one stack
    patient: str | None = None

    @property
    def name(self) -> str:
        """Slide and field, as in file names."""
        return f"{self.slide}_{self.field}" if self.field else self.slide


class FocalStack(ABC):
    """An opened focal stack.

    Attributes:
        planes: how many.
        shape: (height, width) px of each.
        mpp: µm per pixel, None where the source does not say.
        spacing_um: between planes, None where the source does not say.
        patient: None where the source does not say.
    """

    planes: int
    shape: tuple[int, int]
    mpp: float | None = None
    spacing_um: float | None = None
    patient: str | None = None

    @abstractmethod
    def read(self, plane: int, box: Box) -> NDArray[np.uint8]:
        """A rectangle of a plane, (height, width, 3) uint8.

        Raises:
            ValueError: the plane's data is damaged, of another size, or not 8-bit RGB.
        """

    def close(self) -> None:  # noqa: B027 (most forms hold nothing open)
        """Give files and memory back."""

    def __enter__(self) -> FocalStack:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PlaneFiles(FocalStack):
    """Planes that are files of their own: PNG, JPEG, TIFF, slides of scanners."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self.files, self.planes = files, len(files)
        if files[0].suffix.lower() in RASTER_SUFFIXES:
            self.shape = _raster_shape(files[0])
        else:
            with open_image(files[0]) as first:
                self.shape, self.mpp = first.shape, first.mpp

    def read(self, plane: int, box: Box) -> NDArray[np.uint8]:
        with open_image(self.files[plane]) as reader:
            if reader.shape != self.shape:
                raise ImageError(f"planes of a stack must have one size, {self.files[0].name} has {_size(self.shape)} "
                                 f"and {self.files[plane].name} has {_size(reader.shape)}.")
            return reader.read(*box)


class SimulatedStack(PlaneFiles):
    """A folder that `mop simulate` made; `files` are its planes and, last, drawn.json."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        drawn = _drawn(files[-1])
        super().__init__(files[:-1])
        positions = drawn["positions_um"]
        if len(positions) != self.planes:
            raise ImageError(f"{files[-1]} names {len(positions)} planes and {self.planes} are there.")
        self.mpp, self.spacing_um = float(drawn["plan"]["mpp"]), float(drawn["plan"]["spacing_um"])


class TiffStack(FocalStack):
    """Pages of one TIFF, or the Z axis of an OME-TIFF or of an ImageJ stack."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        (self.file,) = files
        with TiffReader(self.file, plane=0) as first:
            self.planes, self.shape = first.planes, first.shape
            self.mpp, self.spacing_um = first.mpp, first.spacing_um

    def read(self, plane: int, box: Box) -> NDArray[np.uint8]:
        with TiffReader(self.file, plane=plane) as reader:
            return reader.read(*box)


class NiftiStack(FocalStack):
    """A NIfTI volume of 8-bit RGB: axes X, Y, Z as its RGB type, or X, Y, Z and three values."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        import nibabel
        from nibabel.filebasedimages import ImageFileError

        (self.file,) = files
        try:
            self._image: Any = nibabel.load(self.file)
        except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
            raise ImageError(f"{self.file.name} cannot be opened as NIfTI: {reason_of(error)}.") from error
        shape, kind = self._image.shape, self._image.get_data_dtype()
        plain = kind == np.uint8 and shape[-1] == 3 and (len(shape) == 4 or (len(shape) == 5 and shape[3] == 1))
        coloured = kind.names == ("R", "G", "B") and kind["R"] == np.uint8 and len(shape) == 3
        if not plain and not coloured:
            raise ImageError(f"a NIfTI stack must be 8-bit RGB with axes X, Y, Z, {self.file.name} has {kind} and "
                             f"shape {shape}.")
        self.shape, self.planes = (int(shape[1]), int(shape[0])), int(shape[2])
        unit = {"mm": UM_PER_MM, "micron": 1.0, "meter": 1e6}.get(self._image.header.get_xyzt_units()[0])
        if unit is not None:
            width, height, depth = (float(size) * unit for size in self._image.header.get_zooms()[:3])
            if abs(width - height) > 0.01 * width:
                raise ImageError(f"pixels must be square, {self.file.name} has {height:.4g} x {width:.4g} µm.")
            self.mpp, self.spacing_um = width, depth
        self._voxels: NDArray[Any] | None = None

    def read(self, plane: int, box: Box) -> NDArray[np.uint8]:
        if self._voxels is None:
            try:  # whole: to seek in a compressed volume is to read it again for each plane
                voxels = np.asanyarray(self._image.dataobj)
            except (OSError, EOFError, ValueError, zlib.error) as error:
                raise ImageError(f"{self.file.name} cannot be read: {reason_of(error)}.") from error
            if voxels.dtype.names:
                voxels = np.ascontiguousarray(voxels).view(np.uint8).reshape(*voxels.shape, 3)
            self._voxels = voxels.reshape(*voxels.shape[:3], 3)
        columns, rows = slice(box.col, box.right), slice(box.row, box.bottom)
        return np.ascontiguousarray(self._voxels[columns, rows, plane].transpose(1, 0, 2))

    def close(self) -> None:
        self._voxels = None


class DicomStack(FocalStack):
    """The base level of one slide microscopy series with several focal planes, read by wsidicom."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self.folder = files[0].parent
        try:
            from wsidicom import WsiDicom, errors
        except ImportError as error:
            raise ImageError("reading DICOM focal stacks needs the package wsidicom, it is not installed.") from error
        # Its errors share no base of their own.
        own = (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception))
        kinds: tuple[type[Exception], ...] = (*own, ValueError, OSError, LookupError, AttributeError)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what bends the standard and still reads is not the user's to mend
                self._slide = WsiDicom.open(list(files))
        except kinds as error:
            raise ImageError(f"{self.folder.name} cannot be opened as DICOM: {reason_of(error)}.") from error
        base = self._slide.pyramids[0].base_level
        self._focal_um = sorted(float(position) for position in base.focal_planes)
        self.planes, self.shape = len(self._focal_um), (int(base.size.height), int(base.size.width))
        self.mpp = float(base.mpp.width)
        steps = np.diff(self._focal_um)
        if len(steps):
            self.spacing_um = float(np.median(steps))
            if bool((np.abs(steps - self.spacing_um) > 0.05 * self.spacing_um).any()):
                raise ImageError(f"focal planes must be evenly spaced, {self.folder.name} has {self._focal_um} µm.")
        named = getattr(self._slide.metadata.patient, "identifier", None)
        self.patient = str(named) if named else None

    def read(self, plane: int, box: Box) -> NDArray[np.uint8]:
        place, size = (box.col, box.row), (box.width, box.height)
        try:
            picture = self._slide.read_region(place, 0, size, z=self._focal_um[plane])
        except (ValueError, OSError, KeyError) as error:
            raise ImageError(f"plane {plane} of {self.folder.name} cannot be decoded: {reason_of(error)}.") from error
        return np.asarray(picture.convert("RGB"))

    def close(self) -> None:
        self._slide.close()


READERS: dict[str, Callable[[tuple[Path, ...]], FocalStack]] = {
    "planes": PlaneFiles,
    "simulated": SimulatedStack,
    "tiff": TiffStack,
    "nifti": NiftiStack,
    "dicom": DicomStack,
}


def open_stack(source: StackSource) -> FocalStack:
    """Open a stack that was found.

    Raises:
        FileNotFoundError: a file is gone.
        ImageError: not a stack of 8-bit RGB planes; the sentence names the rule.
    """
    for file in source.files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing.")
    return READERS[source.form](source.files)


def _raster_shape(file: Path) -> tuple[int, int]:
    """(height, width) of a PNG or JPEG as `open_image` will give it, from its header."""
    from PIL import Image

    turned = (5, 6, 7, 8)  # EXIF orientations that swap the sides
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            width, height = image.size
            return (width, height) if image.getexif().get(274) in turned else (height, width)
    except (OSError, SyntaxError) as error:
        raise ImageError(f"{file.name} cannot be decoded as PNG or JPEG: {reason_of(error)}.") from error


def _drawn(file: Path) -> dict[str, Any]:
    try:
        drawn = json.loads(file.read_text(encoding="utf-8"))
        drawn["positions_um"], drawn["plan"]["mpp"], drawn["plan"]["spacing_um"]
    except (ValueError, KeyError, TypeError) as error:
        raise ImageError(f"{file} must be written by mop simulate, it lacks {reason_of(error)}.") from error
    return dict(drawn)


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[1]} x {shape[0]} px"
