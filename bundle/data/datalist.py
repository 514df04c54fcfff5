"""A dataset of `mop prepare` -> MONAI records of its planes, refused where training or measuring on it would mislead.

    DATASET/datalist.json   {"patch_px": 256, "training": [record …], "validation": […], "testing": […]}

A record is one plane of one field: paths of `image`, `label` and `depth`; `slide`, `field`, `patient`, `mpp`, `plane`,
`position_um`; and for each patch its `location`, `defocus_um` and `contrast`. See docs/prepare.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bundle.conventions import CONTRAST, DEFOCUS_UM, IMAGE, LABEL, MPP
from bundle.data.splits import SECTIONS

DATALIST = "datalist.json"
DEPTH, LOCATION = "depth", "location"
PATHS = (IMAGE, LABEL, DEPTH)
OF_PATCHES = (LOCATION, DEFOCUS_UM, CONTRAST)
NEEDED = (*PATHS, "slide", "field", MPP, "plane", "position_um", *OF_PATCHES)
SPLITS = dict(zip(("train", "val", "test"), SECTIONS, strict=True))  # as folders of sharp fields call them


def is_dataset(folder: str | Path) -> bool:
    """Whether `folder` is a dataset of `mop prepare`, not a folder of sharp fields."""
    return (Path(folder) / DATALIST).is_file()


def plane_records(dataset: str | Path, section: str) -> list[dict[str, Any]]:
    """Records of one section in the order of the list, paths made absolute by `dataset`.

    Args:
        dataset: folder with a datalist.json.
        section: "training", "validation" or "testing".

    Returns:
        Records as in the list, with `file`, the image as the list names it, and `patch_px`, the side of its patches.

    Raises:
        FileNotFoundError: the list, or an image that it names, is missing.
        ValueError: the list is none, the section is unknown or empty, or a slide or patient of it is in another, too.
    """
    if section not in SECTIONS:
        raise ValueError(f"a section must be one of {', '.join(SECTIONS)}, got {section!r}.")
    path = Path(dataset) / DATALIST
    held = _held(path)
    chosen = held[section]
    if not chosen:
        slides = sorted({str(record["slide"]) for one in SECTIONS for record in held[one]})
        alone = f"it has {slides[0]} alone" if len(slides) == 1 else f"it has {len(slides)} slides in others"
        raise ValueError(f"every section of a dataset needs a slide of its own, {path} has none for {section!r}: "
                         f"{alone}.")
    for kind in ("slide", "patient"):
        _refuse_leak(kind, section, held)
    root = Path(dataset)
    named = sorted({record[key] for record in chosen for key in PATHS})
    absent = [name for name in named if not (root / name).is_file()]
    if absent:
        raise FileNotFoundError(f"{path} names {absent[0]}, which does not exist in {root} "
                                f"({len(absent)} of {len(named)} files of {section!r} are missing).")
    return [{**record, **{key: str(root / record[key]) for key in PATHS}, "file": record[IMAGE],
             "patch_px": held["patch_px"]} for record in chosen]


def _held(path: Path) -> dict[str, Any]:
    """The content of a datalist, every section there and every record with what is needed."""
    if not path.is_file():
        raise FileNotFoundError(f"a dataset of focal stacks needs {DATALIST}, which mop prepare writes, but {path} "
                                "does not exist.")
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON, but: {error}.") from error
    if not isinstance(held, dict) or not isinstance(held.get("patch_px"), int):
        raise ValueError(f"{path} must be a datalist of mop prepare with patch_px, got {str(held)[:40]}.")
    held |= {section: held.get(section) or [] for section in SECTIONS}
    for section in SECTIONS:
        for place, record in enumerate(held[section]):
            missing = [key for key in NEEDED if not isinstance(record, dict) or key not in record]
            if missing:
                raise ValueError(f"every record of {path} must have {missing[0]!r}, number {place} of {section!r} "
                                 "has not.")
            counts = {len(record[key]) for key in OF_PATCHES}
            if len(counts) > 1 or counts == {0}:
                raise ValueError(f"every record of {path} must have one {', one '.join(OF_PATCHES)} for each patch, "
                                 f"number {place} of {section!r} has {', '.join(map(str, sorted(counts)))}.")
    return held


def _refuse_leak(kind: str, section: str, held: dict[str, Any]) -> None:
    """Refuse a slide, or a patient, of this section that is in another section, too."""
    own = {record.get(kind) for record in held[section]} - {None}
    others = {record.get(kind) for one in SECTIONS if one != section for record in held[one]}
    if own & others:
        raise ValueError(f"a {kind} may be in one section only, but {min(own & others)} is in {section!r} and in "
                         "another.")
