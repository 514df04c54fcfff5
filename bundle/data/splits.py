"""Slides -> training, validation, testing, 8:1:1: by patient where patients are known, never by field.

The rule knows names alone: groups (patients or slides) in natural order, every tenth from the fifth on validates,
every tenth from the tenth on tests; below ten groups the last tests and the last but one validates. The same names
give the same split on every machine, whatever the order in which they were found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

TRAINING, VALIDATION, TESTING = "training", "validation", "testing"
SECTIONS = (TRAINING, VALIDATION, TESTING)
OF_TEN = 10


def split_slides(patients: Mapping[str, str | None]) -> dict[str, str]:
    """Section of every slide.

    Args:
        patients: slide -> its patient, None where that is not known: the slide then stands for itself.

    Returns:
        slide -> section; all slides of a patient have one.

    Raises:
        ValueError: fewer than three patients or slides: no section may be empty.
    """
    groups = {slide: f"patient {patient}" if patient else slide for slide, patient in patients.items()}
    names = sorted(set(groups.values()), key=natural_order)
    if len(names) < len(SECTIONS):
        raise ValueError(f"a split into {', '.join(SECTIONS)} needs at least {len(SECTIONS)} slides or patients, got "
                         f"{len(names)} ({', '.join(names)}): name one section for all with --section.")
    places = {name: _section(index, len(names)) for index, name in enumerate(names)}
    return {slide: places[group] for slide, group in groups.items()}


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key in which slide 2 stands before slide 10."""
    parts = re.split(r"(\d+)", name)
    return tuple((1, int(part), part) if part.isdecimal() else (0, 0, part) for part in parts)


def _section(index: int, count: int) -> str:
    if count < OF_TEN:
        return {count - 1: TESTING, count - 2: VALIDATION}.get(index, TRAINING)
    return {OF_TEN // 2 - 1: VALIDATION, OF_TEN - 1: TESTING}.get(index % OF_TEN, TRAINING)
