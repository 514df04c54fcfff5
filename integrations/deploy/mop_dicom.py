"""A restored region of a DICOM slide as DICOM: one Secondary Capture image in the patient's own study.

The SDK has writers for segmentations, reports and PDF, and for a picture the modules that every object shares
(`write_common_modules`: patient, study, series, equipment). What makes it a colour image is added here:

    ImageType                  DERIVED, SECONDARY: nobody may take it for what the scanner saw
    SourceImageSequence        the instances of the level that it was made from
    DerivationDescription      by what, from which region, with which weights
    LossyImageCompression      stays 01 where the source was: what is lost stays lost
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from monai.deploy.core.domain import DICOMSeries
from monai.deploy.operators.dicom_utils import EquipmentInfo, ModelInfo, write_common_modules
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, SecondaryCaptureImageStorage, generate_uid
from pydicom.valuerep import DSfloat

from bundle import __version__
from bundle.slides.reader import DICOM_SUFFIXES, ImageReader
from bundle.slides.region import Region

MOST_SIDE = 65535  # px: Rows and Columns are 16-bit
LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
NAME = "MoP pathology restoration"


class Source(NamedTuple):
    """What a restored region keeps of its DICOM slide."""

    instances: tuple[Dataset, ...]  # of the level that was read, without pixels
    region: Region
    mpp: float | None  # µm per pixel of the level
    icc_profile: bytes | None


def source_of(reader: ImageReader, region: Region, shape: tuple[int, ...]) -> Source | None:
    """What to keep of the slide; None where it is no DICOM.

    Args:
        reader, region: what was read.
        shape: of the pixels that were read.

    Raises:
        ValueError: the image has a side that DICOM cannot say.
    """
    if reader.path.suffix.lower() not in DICOM_SUFFIXES:
        return None
    level = reader.levels[region.level]
    if max(shape) > MOST_SIDE:
        raise ValueError(f"a DICOM image may have sides of up to {MOST_SIDE} px, the region has {max(shape)}.")
    headers = [dcmread(file, stop_before_pixels=True) for file in reader.files]
    size = level.height, level.width
    instances = [header for header in headers
                 if (header.get("TotalPixelMatrixRows"), header.get("TotalPixelMatrixColumns")) == size]
    mpp = None if reader.mpp is None else reader.mpp * level.downsample
    return Source(tuple(instances or headers), region, mpp, reader.icc_profile)


def secondary_capture(pixels: NDArray[np.uint8], source: Source, weights: Path) -> Dataset:
    """(H, W, 3) -> a Secondary Capture image of the source's patient and study, in a series of its own.

    Args:
        pixels: restored.
        source: from `source_of`.
        weights: the file that restored; its checksum is told.
    """
    first, digest = source.instances[0], hashlib.sha256(weights.read_bytes()).hexdigest()
    series = DICOMSeries(first.SeriesInstanceUID)
    series.add_sop_instance(first)
    model = ModelInfo("MoP contributors", NAME, __version__, generate_uid(entropy_srcs=[digest]))
    image: Dataset = write_common_modules(series, True, first.Modality, SecondaryCaptureImageStorage, model,
                                          EquipmentInfo("MoP contributors", NAME, software_version_number=__version__))
    # The SDK writes another program's identity, today's date of acquisition and Latin-1 for any name.
    image.file_meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    for keyword in ("SpecificCharacterSet", "AcquisitionDateTime", *LOSSY):
        if keyword in first:
            image[keyword] = first[keyword]
        elif keyword in image:
            del image[keyword]
    for keyword in ("BodyPartExamined", "RequestedProcedureID"):  # optional, and the SDK writes them empty
        if not image.get(keyword):
            del image[keyword]
    image.ImageType, image.ConversionType = ["DERIVED", "SECONDARY"], "WSD"  # of a workstation
    image.PatientOrientation, image.Laterality = "", first.get("Laterality", "")
    (x, y), (height, width) = source.region.location, pixels.shape[:2]
    image.DerivationDescription = (
        f"{NAME} {__version__}: brought into focus by a network, an estimate; {width} x {height} px of level "
        f"{source.region.level} from x {x}, y {y} of level 0; weights sha256 {digest}")
    image.SourceImageSequence = [_reference(instance) for instance in source.instances]
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    image.Rows, image.Columns = height, width
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    if source.mpp is not None:
        image.PixelSpacing = [DSfloat(source.mpp / 1000, auto_format=True)] * 2  # mm
    if source.icc_profile:
        image.ICCProfile = source.icc_profile
    image.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
    return image


def _reference(instance: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = instance.SOPClassUID, instance.SOPInstanceUID
    return item
