"""Sharp fields on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.data.fields import field_records


def folder_of(tmp_path: Path, *entries: tuple[str, str, str]) -> Path:
    records = []
    for file, split, slide in entries:
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / file)
        records.append({"file": file, "split": split, "slide": slide, "mpp": 0.25})
    (tmp_path / "index.json").write_text(json.dumps(records))
    return tmp_path


def test_a_split_gives_its_own_fields(tmp_path: Path) -> None:
    """Test fields in training would make every figure of the model card worthless."""
    folder = folder_of(tmp_path, ("a.png", "train", "s1"), ("b.png", "test", "s2"), ("c.png", "train", "s3"))
    assert [Path(record["label"]).name for record in field_records(folder, "train")] == ["a.png", "c.png"]


def test_a_slide_in_two_splits_is_refused(tmp_path: Path) -> None:
    """Fields of one slide look alike: a leak between splits flatters the figures."""
    folder = folder_of(tmp_path, ("a.png", "train", "s1"), ("b.png", "val", "s1"))
    with pytest.raises(ValueError, match="a slide may be in one split only, but s1"):
        field_records(folder, "val")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """A wrong path must not end in a traceback from deep inside a loader."""
    with pytest.raises(FileNotFoundError, match=r"needs index\.json"):
        field_records(tmp_path, "train")
    folder = folder_of(tmp_path, ("a.png", "train", "s1"))
    with pytest.raises(ValueError, match=r"a slide of its own for every split, but .* has s1 alone and none for 'val'"):
        field_records(folder, "val")
    folder = folder_of(tmp_path, ("a.png", "train", "s1"), ("b.png", "train", "s2"), ("c.png", "train", "s2"))
    with pytest.raises(ValueError, match="split 'val', got none"):
        field_records(folder, "val")
    (folder / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"names b\.png, .* \(1 of 3 files of 'train' are missing\)"):
        field_records(folder, "train")


@pytest.mark.parametrize(("text", "told"), [
    ("{", "must be JSON"), ("{}", "must be a list of fields"), ("[]", "must be a list of fields, at least one"),
    ('[{"file": "a.png", "split": "train", "mpp": 1}]', "must have 'slide', number 0 has not"),
])
def test_an_index_that_is_none_is_refused_in_one_sentence(tmp_path: Path, text: str, told: str) -> None:
    """An index written by hand has a mistake sooner or later; a KeyError does not say where."""
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ValueError, match=told) as caught:
        field_records(tmp_path, "train")
    assert "\n" not in str(caught.value)
