"""Sharp fields on disk -> MONAI records.

A folder of sharp fields holds images and `index.json`, a list of records with at least `file`, `split`, `slide`
and `mpp`. A record here is `{"label": path, "mpp": µm/px, "slide": name}`.
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
        ValueError: the split is empty, or one of its slides is in another split too.
    """
    index = Path(folder) / INDEX
    if not index.is_file():
        raise FileNotFoundError(f"a folder of sharp fields needs {INDEX}, but {index} does not exist.")
    entries = json.loads(index.read_text())
    chosen = [entry for entry in entries if entry["split"] == split]
    if not chosen:
        raise ValueError(f"{index} must list fields of the split {split!r}, got none.")
    shared = {entry["slide"] for entry in chosen} & {entry["slide"] for entry in entries if entry["split"] != split}
    if shared:
        raise ValueError(f"a slide may be in one split only, but {sorted(shared)[0]} is in {split!r} and in another.")
    records = []
    for entry in chosen:
        path = Path(folder) / entry["file"]
        if not path.is_file():
            raise FileNotFoundError(f"{index} names {entry['file']}, which does not exist in {folder}.")
        records.append({LABEL: str(path), MPP: float(entry["mpp"]), "slide": entry["slide"]})
    return records
