"""A dataset of mop prepare as trainers and evaluations read it: all of it, or one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle.data.datalist import DATALIST, plane_records
from tests.data.dataset_files import changed, write_dataset


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("written") / "dataset")


@pytest.fixture
def dataset(written: Path, tmp_path: Path) -> Path:
    """The dataset with a datalist that a test may change; its fields are the same files."""
    (tmp_path / "fields").symlink_to(written / "fields")
    (tmp_path / DATALIST).write_bytes((written / DATALIST).read_bytes())
    return tmp_path


def test_records_are_the_planes_of_one_section(dataset: Path) -> None:
    """A trainer that read the testing planes would report what it has learned by heart."""
    records = plane_records(dataset, "training")
    expected = [(slide, plane) for slide in ("A1", "B2") for plane in range(3)]
    assert [(record["slide"], record["plane"]) for record in records] == expected
    assert {record["slide"] for record in plane_records(dataset, "testing")} == {"D4"}
    assert all(Path(record[key]).is_file() for record in records for key in ("image", "label", "depth"))
    assert records[1]["file"] == "fields/A1_1/plane_01.tif" and records[1]["patch_px"] == 256


def shared_slide(held: dict[str, Any]) -> None:
    held["validation"][0]["slide"] = "A1"


def shared_patient(held: dict[str, Any]) -> None:
    held["training"][0]["patient"] = held["testing"][0]["patient"] = "P9"


def absent_file(held: dict[str, Any]) -> None:
    held["training"][4]["label"] = "fields/gone/label.tif"


def one_slide(held: dict[str, Any]) -> None:
    held["training"], held["testing"] = [], []


def empty_section(held: dict[str, Any]) -> None:
    held["training"] = []


def no_contrast(held: dict[str, Any]) -> None:
    del held["testing"][2]["contrast"]


def uneven_labels(held: dict[str, Any]) -> None:
    held["training"][1]["defocus_um"].append(0.0)


def no_patch_size(held: dict[str, Any]) -> None:
    del held["patch_px"]


@pytest.mark.parametrize(("change", "error", "message"), [
    (shared_slide, ValueError, "a slide may be in one section only, but A1 is in 'training' and in another"),
    (shared_patient, ValueError, "a patient may be in one section only, but P9 is in 'training'"),
    (absent_file, FileNotFoundError, r"names fields/gone/label\.tif, which does not exist .*1 of \d+ files"),
    (one_slide, ValueError, "needs a slide of its own, .* has none for 'training': it has C3 alone"),
    (empty_section, ValueError, "has none for 'training': it has 2 slides in others"),
    (no_contrast, ValueError, "must have 'contrast', number 2 of 'testing' has not"),
    (uneven_labels, ValueError, "one location, one defocus_um, one contrast for each patch, number 1 of 'training'"),
    (no_patch_size, ValueError, "must be a datalist of mop prepare with patch_px"),
])
def test_a_datalist_that_would_mislead_is_refused_in_one_sentence(
        dataset: Path, change: Callable[[dict[str, Any]], None], error: type[Exception], message: str) -> None:
    """A leak or a hole found after a night of training has cost the night."""
    changed(dataset, change)
    with pytest.raises(error, match=message) as told:
        plane_records(dataset, "training")
    assert "\n" not in str(told.value) and str(told.value).endswith(".")


def test_what_is_no_datalist_is_told(dataset: Path) -> None:
    """A half-copied dataset is common; a traceback of the JSON reader helps nobody."""
    (dataset / DATALIST).write_text('{"patch_px": 256, "training": [{"ima')
    with pytest.raises(ValueError, match=r"datalist\.json must be JSON, but"):
        plane_records(dataset, "training")
    (dataset / DATALIST).unlink()
    with pytest.raises(FileNotFoundError, match=r"needs datalist\.json, which mop prepare writes"):
        plane_records(dataset, "training")
    with pytest.raises(ValueError, match="a section must be one of training, validation, testing, got 'train'"):
        plane_records(dataset, "train")
