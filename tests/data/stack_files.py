"""Small focal stacks as files, for the tests of reading and preparing them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Planes = NDArray[np.uint8]  # (P, H, W, 3)


def noise_planes(planes: int = 3, height: int = 70, width: int = 90, seed: int = 0) -> Planes:
    """Planes that differ everywhere: for tests of reading."""
    return np.random.default_rng(seed).integers(0, 256, (planes, height, width, 3), dtype=np.uint8)


def write_planes(folder: Path, planes: Planes, name: str = "35_32", first: int = 0) -> list[Path]:
    """`NAME_00.png` …"""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}_{index:02d}.png" for index in range(first, first + len(planes))]
    for file, plane in zip(files, planes):
        Image.fromarray(plane).save(file, compress_level=1)
    return files


def write_dicom(file: Path, planes: Planes, spacing_um: float, mpp: float) -> None:
    """One instance of VL Whole Slide Microscopy, TILED_FULL, uncompressed, one tile a plane."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.sequence import Sequence
    from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage, generate_uid

    count, height, width, _ = planes.shape
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = (generate_uid() for _ in range(3))
    data.PatientID, data.PatientName, data.Modality, data.ContainerIdentifier = "P7", "", "SM", "S1"
    data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.Rows, data.Columns, data.NumberOfFrames = height, width, count
    data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = height, width
    data.TotalPixelMatrixFocalPlanes, data.NumberOfOpticalPaths = count, 1
    data.ImagedVolumeWidth, data.ImagedVolumeHeight = width * mpp / 1e3, height * mpp / 1e3
    data.ImagedVolumeDepth = spacing_um * (count - 1)
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.DimensionOrganizationType, data.FocusMethod, data.ExtendedDepthOfField = "TILED_FULL", "AUTO", "NO"
    data.SpecimenLabelInImage, data.BurnedInAnnotation, data.LossyImageCompression = "NO", "NO", "00"
    data.VolumetricProperties, data.InstanceNumber = "VOLUME", 1
    data.ImageOrientationSlide = [0, 1, 0, 1, 0, 0]
    measures, origin, path, groups, code = Dataset(), Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [mpp / 1e3, mpp / 1e3]
    measures.SpacingBetweenSlices = measures.SliceThickness = spacing_um / 1e3
    groups.PixelMeasuresSequence = Sequence([measures])
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0.0
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "111744", "DCM", "Brightfield illumination"
    path.OpticalPathIdentifier, path.IlluminationTypeCodeSequence = "0", Sequence([code])
    data.SharedFunctionalGroupsSequence = Sequence([groups])
    data.TotalPixelMatrixOriginSequence, data.OpticalPathSequence = Sequence([origin]), Sequence([path])
    data.PixelData = planes.tobytes()
    data["PixelData"].VR = "OB"
    file.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(file, enforce_file_format=True)
