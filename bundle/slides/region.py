"""A region as viewers and servers name it: (x, y) of level 0, a size and a level; small enough for one answer.

    location   [x, y]             upper left pixel, of level 0, whatever the level
    size       [width, height]    px of the level; [0, 0]: all that is right of and below the location
    level      0 is the full resolution
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bundle.slides.reader import ImageReader

MOST_PIXELS = 64 * 2**20  # of one region: it is restored in memory; whole slides go by `mop restore`


class Region(NamedTuple):
    """What to read; the defaults are the whole image."""

    location: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (0, 0)
    level: int = 0


def region_of(wishes: Mapping[str, Any]) -> Region:
    """The region that a parsed JSON object names; other keys are left alone.

    Raises:
        ValueError: a value is not what the module says.
    """
    named = {name: _pair(name, wishes[name]) for name in ("location", "size") if name in wishes}
    return Region(**named, level=whole("level", wishes.get("level", 0)))


def read_region(reader: ImageReader, region: Region) -> NDArray[np.uint8]:
    """The pixels of a region, (height, width, 3).

    Raises:
        ValueError: it lies outside the image, or has more than `MOST_PIXELS`.
    """
    if region.level >= len(reader.levels):
        raise ValueError(f"level must lie in 0..{len(reader.levels) - 1}, got {region.level}.")
    level = reader.levels[region.level]
    col, row = (round(place / level.downsample) for place in region.location)
    width, height = region.size if any(region.size) else (level.width - col, level.height - row)
    if width * height > MOST_PIXELS and min(width, height) > 0:
        raise ValueError(f"a region may have up to {MOST_PIXELS} px, got {width} x {height}: give location and size, "
                         "or use mop restore for the whole slide.")
    return reader.read(row, col, height, width, region.level)


def whole(name: str, value: Any) -> int:
    """A whole number from 0 on.

    Raises:
        ValueError: `value` is something else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} must be a whole number from 0 on, got {value!r}.")
    return value


def _pair(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"{name} must be two whole numbers, got {value!r}.")
    return whole(name, value[0]), whole(name, value[1])
