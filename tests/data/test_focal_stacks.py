"""Every form of focal stack gives the same pixels and its scale, and what is no stack is refused in a sentence."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from bundle.data.focal_stacks import FocalStack, StackSource, open_stack
from bundle.data.stack_search import find_stacks
from bundle.slides.grid import Box
from tests.data.stack_files import Planes, noise_planes, write_dicom, write_planes

OME = {"axes": "ZYXS", "PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.25, "PhysicalSizeZ": 0.8}


def nifti(file: Path, planes: Planes, coloured: bool = True, unit: str = "mm") -> None:
    import nibabel

    voxels = np.ascontiguousarray(planes.transpose(2, 1, 0, 3))  # X, Y, Z, RGB
    if coloured:
        voxels = voxels.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    image = nibabel.Nifti1Image(voxels, np.eye(4), dtype=voxels.dtype)
    image.header.set_zooms((2.5e-4, 2.5e-4, 8e-4, 1.0)[:image.ndim])
    image.header.set_xyzt_units(unit)
    nibabel.save(image, file)


def simulated(folder: Path, planes: Planes) -> None:
    folder.mkdir()
    for index, plane in enumerate(planes):
        Image.fromarray(plane).save(folder / f"plane_{index:02d}.png")
    drawn = {"plan": {"mpp": 0.25, "spacing_um": 0.8}, "positions_um": [-0.8, 0.0, 0.8]}
    (folder / "drawn.json").write_text(json.dumps(drawn))


WRITERS = {
    "planes": lambda root, planes: write_planes(root, planes),
    "pages": lambda root, planes: tifffile.imwrite(root / "a_1.tif", planes, photometric="rgb", compression="lzw"),
    "ome": lambda root, planes: tifffile.imwrite(root / "a_1.ome.tif", planes, photometric="rgb", metadata=OME),
    "nifti": lambda root, planes: nifti(root / "a_1.nii.gz", planes),
    "nifti4": lambda root, planes: nifti(root / "a_1.nii", planes, coloured=False),
    "simulated": lambda root, planes: simulated(root / "a_1", planes),
    "dicom": lambda root, planes: write_dicom(root / "a_1.dcm", planes, 0.8, 0.25),
}
WITHOUT_SCALE = {"planes", "pages"}


def opened(root: Path) -> FocalStack:
    found = find_stacks(root)
    assert len(found.stacks) == 1 and not found.problems
    return open_stack(found.stacks[0])


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_gives_the_same_pixels_and_its_scale(tmp_path: Path, form: str) -> None:
    """A mirrored axis or a plane out of order trains a network on the wrong distances."""
    if form == "dicom":
        pytest.importorskip("wsidicom")
    planes = noise_planes()
    WRITERS[form](tmp_path, planes)
    with opened(tmp_path) as stack:
        assert (stack.planes, stack.shape) == (3, (70, 90))
        box = Box(5, 10, 60, 40)
        for index, plane in enumerate(planes):
            np.testing.assert_array_equal(stack.read(index, box), plane[5:65, 10:50])
        if form in WITHOUT_SCALE:
            assert stack.mpp is None and stack.spacing_um is None
        else:
            assert stack.mpp == pytest.approx(0.25) and stack.spacing_um == pytest.approx(0.8)
        assert stack.patient == ("P7" if form == "dicom" else None)


def test_single_page_tiffs_are_planes(tmp_path: Path) -> None:
    """Slides whose planes are separate files: the number in the name is the plane, the resolution tag the scale."""
    planes = noise_planes()
    for index, plane in enumerate(planes):
        tifffile.imwrite(tmp_path / f"s_1_{index}.tif", plane, resolution=(4e4, 4e4), resolutionunit=3)
    with opened(tmp_path) as stack:
        np.testing.assert_array_equal(stack.read(2, Box(0, 0, 70, 90)), planes[2])
        assert stack.mpp == pytest.approx(0.25)


def of_files(*files: Path, form: str = "planes") -> StackSource:
    return StackSource(form, files, "a", "1")


def test_planes_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    """Another size, 16 bits, grey: read as they are they would be stretched, wrapped or misread."""
    files = write_planes(tmp_path, noise_planes(3))
    whole = Box(0, 0, 70, 90)
    write_planes(tmp_path, noise_planes(1, height=71), first=1)
    with open_stack(of_files(*files)) as stack, \
            pytest.raises(ValueError, match=r"one size, 35_32_00\.png has 90 x 70 px"):
        stack.read(1, whole)
    tifffile.imwrite(tmp_path / "deep.tif", noise_planes(1)[0].astype(np.uint16), photometric="rgb")
    with open_stack(of_files(files[0], tmp_path / "deep.tif")) as stack, \
            pytest.raises(ValueError, match=r"8-bit RGB.*16-bit"):
        stack.read(1, whole)
    with tifffile.TiffWriter(tmp_path / "mixed.tif") as tiff:
        tiff.write(noise_planes(1)[0], photometric="rgb")
        tiff.write(noise_planes(1)[0].astype(np.uint16), photometric="rgb")
    with pytest.raises(ValueError, match=r"planes of one size and depth, mixed.tif holds 2 images"):
        open_stack(of_files(tmp_path / "mixed.tif", form="tiff"))


def test_dicom_without_its_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wsidicom is of use to few: who needs it must hear its name and no traceback."""
    monkeypatch.setitem(sys.modules, "wsidicom", None)
    (tmp_path / "a.dcm").touch()
    with pytest.raises(ValueError, match="needs the package wsidicom, it is not installed"):
        open_stack(of_files(tmp_path / "a.dcm", form="dicom"))


def read_all(source: StackSource) -> list[Planes]:
    with open_stack(source) as stack:
        return [stack.read(plane, Box(0, 0, *stack.shape)) for plane in range(stack.planes)]


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    """A copy that broke off, a float volume, a text with the wrong suffix: one sentence, no traceback."""
    tifffile.imwrite(tmp_path / "a.tif", noise_planes(), photometric="rgb", compression="lzw")
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(content[:len(content) // 2])
    with pytest.raises(ValueError, match=r"cut\.tif (is truncated|is cut short|cannot be opened)"):
        read_all(of_files(tmp_path / "cut.tif", form="tiff"))
    for form, name in (("nifti", "a.nii"), ("dicom", "a.dcm"), ("planes", "a.png"), ("simulated", "drawn.json")):
        (tmp_path / name).write_text("text")
        with pytest.raises(ValueError, match=r"cannot be opened|cannot be decoded|mop simulate"):
            open_stack(of_files(tmp_path / name, form=form))
    import nibabel

    nibabel.save(nibabel.Nifti1Image(np.zeros((40, 40, 3), np.float32), np.eye(4)), tmp_path / "grey.nii")
    with pytest.raises(ValueError, match=r"must be 8-bit RGB with axes X, Y, Z, grey.nii has float32"):
        open_stack(of_files(tmp_path / "grey.nii", form="nifti"))
    with pytest.raises(FileNotFoundError, match=r"gone\.png is missing"):
        open_stack(of_files(tmp_path / "gone.png"))
