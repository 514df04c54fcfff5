"""Which files are one stack, of which slide and field: a wrong answer mixes fields or leaks slides."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from bundle.data.focal_stacks import open_stack
from bundle.data.stack_search import Found, NamePattern, find_stacks
from bundle.slides.grid import Box


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(found: Found) -> dict[tuple[str, str], list[str]]:
    return {(stack.slide, stack.field): [file.name for file in stack.files] for stack in found.stacks}


def test_planes_in_one_folder_are_slide_field_plane(tmp_path: Path) -> None:
    """The plainest export of a scanner: 35_32_07.jpg; plane 10 comes after plane 9, not after plane 1."""
    files = [f"35_32_{plane}.jpg" for plane in range(11)] + [f"36_1_{plane:02d}.PNG" for plane in range(3)]
    found = find_stacks(touch(tmp_path, *files, "notes.txt", "overview.jpg"))
    assert names(found) == {("35", "32"): files[:11], ("36", "1"): files[11:]}
    assert not found.problems and found.ignored == ["overview.jpg"] and not found.sections


def test_the_authors_layout_is_read_with_its_lists(tmp_path: Path) -> None:
    """A folder per slide, Z_ images that are no planes, lists with paths of another machine that decide the split."""
    for slide in ("C221-2", "C222", "C223"):
        touch(tmp_path / "all" / slide, *(f"20_22_{plane:02d}.jpg" for plane in range(3)), "Z_20_22.jpg")
    for name, slide in (("train", "C222"), ("val2", "C221-2"), ("test", "C223")):
        (tmp_path / f"{name}.txt").write_text(f"D:/scans/all/{slide}\\20_22_00.jpg 0.31 -0.8\n")
    found = find_stacks(tmp_path)
    planes = ["20_22_00.jpg", "20_22_01.jpg", "20_22_02.jpg"]
    assert names(found) == {("C221-2", "20_22"): planes, ("C222", "20_22"): planes, ("C223", "20_22"): planes}
    assert found.sections == {"C222": "training", "C221-2": "validation", "C223": "testing"}
    assert not found.problems and not found.ignored
    # One slide's folder alone: its name is the slide, whatever its fields are called.
    assert set(names(find_stacks(tmp_path / "all" / "C222"))) == {("C222", "20_22")}
    (tmp_path / "test.txt").write_text("D:/all/C222/20_22_01.jpg 0 0\nD:/all/C223/20_22_01.jpg 0 0\n")
    with pytest.raises(ValueError, match=r"a slide may be in one section only.*C222"):
        find_stacks(tmp_path)
    (tmp_path / "test.txt").unlink()
    with pytest.raises(ValueError, match="text lists must name every slide, C223"):
        find_stacks(tmp_path)


def test_lists_that_name_nothing_of_a_folder_are_no_silent_split(tmp_path: Path) -> None:
    """A slide that a list calls validation must not end in training because its folder has another form."""
    touch(tmp_path / "flat", *(f"{slide}_1_{plane:02d}.jpg" for slide in "ABC" for plane in range(3)))
    (tmp_path / "flat" / "val.txt").write_text("D:/scans/flat/C_1_00.jpg 0.31 -0.8\n")
    with pytest.raises(ValueError, match=r"of those found here they name none \(val\.txt with C_1_00\.jpg\)"):
        find_stacks(tmp_path / "flat")
    (tmp_path / "flat" / "val.txt").write_text("what was said of the training\n")
    assert len(find_stacks(tmp_path / "flat").stacks) == 3
    touch(tmp_path / "all", *(f"{slide}/1_{plane:02d}.jpg" for slide in "AB" for plane in range(3)), "C/volume.nii")
    (tmp_path / "all" / "train.txt").write_text("all/A/1_00.jpg 0 0\nall/B/1_00.jpg 0 0\n")
    with pytest.raises(ValueError, match="text lists must name every slide, C is in none"):
        find_stacks(tmp_path / "all")


def test_slides_of_two_patients_with_one_name_stay_two(tmp_path: Path) -> None:
    """Slide 1 of every patient is the usual name: as one slide they would leak from training into testing."""
    touch(tmp_path, *(f"{patient}/{slide}/{patient}f_{plane}.jpg" for patient in ("P1", "P2") for slide in "12"
                      for plane in range(3)))
    found = find_stacks(tmp_path, "{patient}/{slide}/{field}_{plane}")
    assert {(stack.patient, stack.slide) for stack in found.stacks} == {
        ("P1", "P1_1"), ("P1", "P1_2"), ("P2", "P2_1"), ("P2", "P2_2")}  # fmt: skip


def test_a_stray_plane_costs_its_own_field_alone(tmp_path: Path) -> None:
    """One file of another series in the folder: the other fields of the slide lack nothing."""
    touch(tmp_path, *(f"A/{field}_{plane}.jpg" for field in range(4) for plane in range(3)), "A/1_100.jpg")
    found = find_stacks(tmp_path)
    assert {stack.field for stack in found.stacks} == {"0", "2", "3"}
    assert found.problems == ["fields of a slide must have the same planes, A_1 alone has 1_100.jpg."]


def test_a_slide_with_fewer_planes_than_the_others_is_told(tmp_path: Path) -> None:
    """If every field of a slide lost its last plane, nothing inside the slide shows it."""
    touch(tmp_path, *(f"{slide}_1_{plane}.jpg" for slide in "ABC" for plane in range(5 - (slide == "C"))))
    (sentence,) = find_stacks(tmp_path).odd
    assert sentence.startswith("warning: C has 4 planes and most slides have 5")


def test_slides_whose_planes_are_files_of_a_scanner_are_one_stack(tmp_path: Path) -> None:
    """A scanner that writes one SVS for each focal plane: size and scale are its own."""
    words = "Aperio Image Library v10.0.51\r\n320x256 [0,0 320x256] (64x64) JPEG/RGB Q=90|AppMag = 40|MPP = 0.2500"
    for plane in range(3):
        pixels = np.full((256, 320, 3), 60 + 40 * plane, np.uint8)
        tifffile.imwrite(tmp_path / f"A1_z{plane:02d}.svs", pixels, photometric="rgb", tile=(64, 64),
                         compression="jpeg", description=words, metadata=None)  # fmt: skip
    (source,) = find_stacks(tmp_path, "{slide}_z{plane}").stacks
    with open_stack(source) as stack:
        assert (source.slide, stack.planes, stack.shape, stack.mpp) == ("A1", 3, (256, 320), pytest.approx(0.25))
        for plane in range(3):
            assert np.abs(stack.read(plane, Box(100, 40, 30, 60)).astype(int) - (60 + 40 * plane)).max() <= 2


def test_a_stack_that_was_cut_to_one_page_is_still_a_stack(tmp_path: Path) -> None:
    """It looked like a single picture and was left out without a word."""
    with tifffile.TiffWriter(tmp_path / "whole.tif") as tiff:
        for _ in range(4):
            tiff.write(np.zeros((64, 64, 3), np.uint8), photometric="rgb", metadata=None)
    content = (tmp_path / "whole.tif").read_bytes()
    (tmp_path / "whole.tif").unlink()
    for share in (0.3, 0.6):
        (tmp_path / "A_1.tif").write_bytes(content[: int(share * len(content))])
        (stack,) = find_stacks(tmp_path).stacks
        with pytest.raises(ValueError, match=r"A_1\.tif (is cut short|is truncated)"):
            open_stack(stack)


def test_a_pattern_names_patient_slide_field_and_plane(tmp_path: Path) -> None:
    """Every laboratory has its own names; a part that the pattern leaves out comes from the folder."""
    touch(tmp_path, *(f"P4/S_1/pos3_z{plane}.tif" for plane in range(4)), "P4/S_1/pos3_z0.jpg")
    found = find_stacks(tmp_path, "{patient}/{slide}/pos{field}_z{plane}.tif")
    assert names(found) == {("S_1", "3"): [f"pos3_z{plane}.tif" for plane in range(4)]}
    assert found.stacks[0].patient == "P4" and len(found.ignored) == 1
    assert set(names(find_stacks(tmp_path, "pos3_z{plane}.tif"))) == {("S_1", "")}


@pytest.mark.parametrize("text", ["planes", "{slide}_{colour}", "{plane}_{plane}", "{}"])
def test_a_pattern_that_names_nothing_is_refused(text: str) -> None:
    """A typing mistake must not read as "no stack found"."""
    with pytest.raises(ValueError, match=r"--pattern must be made of \{patient\}, .* got"):
        NamePattern(text)


def test_missing_and_doubled_planes_are_told(tmp_path: Path) -> None:
    """A gap shifts every plane above it by 0.8 µm: all distances of the field would be wrong."""
    touch(tmp_path, *(f"1_1_{plane}.jpg" for plane in range(5)), *(f"1_2_{plane}.jpg" for plane in (0, 1, 3, 4)),
          *(f"1_3_{plane}.jpg" for plane in range(4)), *(f"1_4_{plane}.jpg" for plane in range(5)), "1_4_2.png")
    found = find_stacks(tmp_path)
    assert set(names(found)) == {("1", "1"), ("1", "4")}
    assert sorted(found.problems) == [
        "a plane must be one file, plane 2 of 1_4 is 1_4_2.jpg and 1_4_2.png.",
        "every plane of a stack must be there, 1_2 has 4 and lacks plane 2.",
        "every plane of a stack must be there, 1_3 has 4 and lacks plane 4."]


def test_stacks_in_files_take_slide_and_field_from_their_names(tmp_path: Path) -> None:
    """Fields of one slide must stay one slide: else the split separates them."""
    touch(tmp_path, "A1_1.nii", "A1_2.nii.gz", "alone.nii", "B2/left.nii", "A1_1.txt")
    assert set(names(find_stacks(tmp_path))) == {("A1", "1"), ("A1", "2"), ("alone", ""), ("B2", "left")}
    touch(tmp_path, "A1/1.nii")
    clash = find_stacks(tmp_path)
    assert len(clash.problems) == 1 and "are both A1_1" in clash.problems[0]


def test_a_folder_without_stacks_is_refused(tmp_path: Path) -> None:
    """An empty dataset after an empty search looks like success."""
    with pytest.raises(ValueError, match=r"must hold focal stacks .* none is among its 1 files"):
        find_stacks(touch(tmp_path, "photo.jpg"))
    with pytest.raises(FileNotFoundError, match="nowhere is missing"):
        find_stacks(tmp_path / "nowhere")
