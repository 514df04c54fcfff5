"""What the inference config takes from a folder and leaves in one."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from bundle.field_restoration import image_records


def test_a_folder_gives_its_images_in_order(tmp_path: Path) -> None:
    """The order of a folder is the system's; records of two machines must be alike."""
    for name in ("b.png", "a.TIF", "notes.txt"):
        Image.new("RGB", (40, 40)).save(tmp_path / name, "PNG")
    assert [Path(record["path"]).name for record in image_records(tmp_path)] == ["a.TIF", "b.png"]


def test_two_images_of_one_result_are_refused(tmp_path: Path) -> None:
    """case1.png would take the place of case1.jpg, and nobody would see it."""
    for name in ("case1.jpg", "case1.png"):
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    with pytest.raises(ValueError, match=r"case1\.jpg and case1\.png would be one: rename"):
        image_records(tmp_path)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    """An evaluator of nothing would end well."""
    with pytest.raises(FileNotFoundError, match="got none in"):
        image_records(tmp_path)
