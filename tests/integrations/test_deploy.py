"""MONAI Deploy's application, run as a program; skipped where `make deploy` has not run."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import skimage.data
import tifffile
from numpy.typing import NDArray
from PIL import Image

from bundle import load_restorer
from bundle.cli import main
from tests.data.stack_files import write_dicom

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-deploy" / "bin" / "python"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON.is_file(), reason="needs .venv-deploy: make deploy")]

TISSUE: NDArray[np.uint8] = skimage.data.immunohistochemistry()
# Not square, not grey, no two edges alike: a transposed, mirrored or recoloured answer shows.
FIELD = np.ascontiguousarray(TISSUE[100:170, 40:136])


def deploy(image: Path, output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The application, from a folder that knows nothing of the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    output.mkdir()
    command = [str(PYTHON), str(ROOT / "integrations" / "deploy" / "app.py"), "-i", str(image), "-o", str(output)]
    return subprocess.run([*command, *arguments], cwd=output.parent, env=environment, capture_output=True, text=True,
                          timeout=900, check=False)


def written(output: Path, stem: str, dicom: bool = False) -> NDArray[np.uint8]:
    """What was written, after seeing that all files hold the same."""
    kinds = [*(["dcm"] if dicom else []), "png", "tif"]
    assert sorted(path.name for path in output.iterdir()) == [f"{stem}_restored.{kind}" for kind in kinds]
    pixels = np.asarray(Image.open(output / f"{stem}_restored.png"))
    assert np.array_equal(pixels, tifffile.imread(output / f"{stem}_restored.tif"))
    return pixels


@pytest.fixture
def field(tmp_path: Path) -> Path:
    Image.fromarray(FIELD).save(tmp_path / "field.png")
    return tmp_path / "field.png"


def test_the_bundle_s_folder_restores_a_picture(field: Path, tmp_path: Path) -> None:
    """The stock operator fails on three channels; a hospital's pipeline must get the pixels of mop restore."""
    ended = deploy(field, tmp_path / "out")
    assert ended.returncode == 0, ended.stderr[-3000:]
    restored = written(tmp_path / "out", "field")
    assert np.abs(restored.astype(int) - load_restorer()(FIELD)).max() <= 1
    assert np.abs(restored.astype(int) - FIELD).mean() > 0.2


def test_a_region_of_a_slide_in_a_folder_is_restored(tmp_path: Path) -> None:
    """A pipeline hands over folders, and of a slide only the part that somebody marked."""
    folder = tmp_path / "in"
    folder.mkdir()
    tifffile.imwrite(folder / "slide.tif", TISSUE, tile=(128, 128), photometric="rgb")
    (folder / "region.json").write_text(json.dumps({"location": [40, 100], "size": [96, 70]}))
    ended = deploy(folder, tmp_path / "out")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert np.abs(written(tmp_path / "out", "slide").astype(int) - load_restorer()(FIELD)).max() <= 1


def test_a_dicom_slide_comes_back_as_dicom_of_its_patient_marked_as_derived(tmp_path: Path) -> None:
    """An archive that files the result under another patient, or shows it as what was scanned, does harm."""
    folder, levels = tmp_path / "in", (TISSUE, np.ascontiguousarray(TISSUE[::2, ::2]))
    shared: dict[str, Any] = {}
    for number, pixels in enumerate(levels):
        file, tile = folder / f"level_{number}.dcm", np.zeros_like(TISSUE)  # a series has one size of tiles
        tile[: len(pixels), : len(pixels)] = pixels
        write_dicom(file, tile[None], 0.8, 0.25 * 2**number)
        data = pydicom.dcmread(file)
        data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = pixels.shape[:2]
        shared = shared or {name: data[name].value for name in (
            "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "ImagedVolumeWidth", "ImagedVolumeHeight")}
        # A name that Latin-1 cannot write, and pixels that a JPEG has spoiled.
        named = {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Łukasz^Zoë", "StudyDate": "20260102",
                 "AccessionNumber": "A17", "LossyImageCompression": "01", "AcquisitionDateTime": "20260101120000"}
        for name, value in {**shared, **named}.items():
            setattr(data, name, value)
        data.save_as(file)
    (folder / "region.json").write_text(json.dumps({"location": [80, 120], "size": [95, 69], "level": 1}))
    ended = deploy(folder, tmp_path / "out")
    assert ended.returncode == 0, ended.stderr[-3000:]
    pixels = written(tmp_path / "out", "level_0", dicom=True)
    region = np.ascontiguousarray(levels[1][60:129, 40:135])
    assert np.abs(pixels.astype(int) - load_restorer()(region)).max() <= 1

    image = pydicom.dcmread(tmp_path / "out" / "level_0_restored.dcm")
    assert np.array_equal(image.pixel_array, pixels)
    assert (image.SOPClassUID.name, list(image.ImageType)) == ("Secondary Capture Image Storage",
                                                               ["DERIVED", "SECONDARY"])
    assert (str(image.PatientName), image.PatientID, image.AccessionNumber) == ("Łukasz^Zoë", "P7", "A17")
    assert image.StudyInstanceUID == shared["StudyInstanceUID"]
    assert image.SeriesInstanceUID != shared["SeriesInstanceUID"]
    assert [item.ReferencedSOPInstanceUID for item in image.SourceImageSequence] == [data.SOPInstanceUID]
    assert (image.LossyImageCompression, image.AcquisitionDateTime) == ("01", "20260101120000")
    assert list(image.PixelSpacing) == pytest.approx([0.0005, 0.0005])
    digest = hashlib.sha256((ROOT / "models" / "model.pt").read_bytes()).hexdigest()
    assert digest in image.DerivationDescription and "95 x 69 px of level 1" in image.DerivationDescription


def test_a_torchscript_file_restores_a_picture(field: Path, tmp_path: Path) -> None:
    """A site that takes models only as one file gets the same chain."""
    model = tmp_path / "model.ts"
    assert main(["export", "--output", str(model)]) == 0
    ended = deploy(field, tmp_path / "out", "-m", str(model))
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert np.abs(written(tmp_path / "out", "field").astype(int) - load_restorer()(FIELD)).max() <= 1


def test_what_is_no_image_is_one_sentence_and_no_file(tmp_path: Path) -> None:
    """Pages of a scheduler's messages hide from an operator that he sent the wrong file."""
    (tmp_path / "note.png").write_bytes(b"not an image")
    ended = deploy(tmp_path / "note.png", tmp_path / "out")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("mop: note.png cannot be decoded as PNG or JPEG")
    assert not list((tmp_path / "out").iterdir())
