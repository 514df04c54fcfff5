"""Sharp fields on disk -> MONAI records.

A folder of sharp fields holds images and `index.json`, a list of records with at least `file`, `split`, `slide`
and `mpp`. A record here is `{"label": path, "mpp": µm/px, "slide": name, "file": as in the index}`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bundle.conventions import LABEL, MPP

INDEX = "index.json"


def field_records(folder: str | Path, split: str) -> list[dict[str, Any]]:
    """Records of one split.

    Raises:
        FileNotFoundError: the folder, its index or an image that the index names is missing.
        ValueError: the index is none, the split is empty, or one of its slides is in another split too.
    """
    index = Path(folder) / INDEX
    entries = _entries(index)
    chosen = [entry for entry in entries if entry["split"] == split]
    slides = sorted({entry["slide"] for entry in entries})
    if not chosen and len(slides) == 1:
        raise ValueError(f"a data set needs a slide of its own for every split, but {index} has {slides[0]} alone and "
                         f"none for {split!r}.")
    if not chosen:
        raise ValueError(f"{index} must list fields of the split {split!r}, got none.")
    shared = {entry["slide"] for entry in chosen} & {entry["slide"] for entry in entries if entry["split"] != split}
    if shared:
        raise ValueError(f"a slide may be in one split only, but {sorted(shared)[0]} is in {split!r} and in another.")
    absent = [entry["file"] for entry in chosen if not (Path(folder) / entry["file"]).is_file()]
    if absent:
        raise FileNotFoundError(f"{index} names {absent[0]}, which does not exist in {folder} "
                                f"({len(absent)} of {len(chosen)} files of {split!r} are missing).")
    return [{LABEL: str(Path(folder) / entry["file"]), MPP: float(entry["mpp"]), "slide": entry["slide"],
             "file": entry["file"]} for entry in chosen]


def _entries(index: Path) -> list[dict[str, Any]]:
    """The index's list, every entry with what is needed."""
    if not index.is_file():
        raise FileNotFoundError(f"a folder of sharp fields needs {INDEX}, but {index} does not exist.")
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{index} must be JSON, but: {error}.") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{index} must be a list of fields, at least one, got {str(entries)[:40]}.")
    for place, entry in enumerate(entries):
        missing = [key for key in ("file", "split", "slide", "mpp") if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise ValueError(f"every field of {index} must have {missing[0]!r}, number {place} has not.")
    return entries
