"""Which files are one stack, of which slide and field: a wrong answer mixes fields or leaks slides."""

from pathlib import Path

import pytest

from bundle.data.stack_search import Found, NamePattern, find_stacks


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
