"""Label and macro of a slide: the scanner's pictures of the glass. Both may show a patient's name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bundle.slides.files import file_beside
from bundle.slides.reader import ASSOCIATED, ImageError, ImageReader
from bundle.slides.whole_files import replace_when_done


def associated_file(result: Path, name: str) -> Path:
    """Where a picture lies beside the result of its slide."""
    return file_beside(result, f"{name}.png")


def read_associated(reader: ImageReader, strict: bool) -> tuple[dict[str, NDArray[np.uint8]], list[str]]:
    """The pictures of a slide by name, and a sentence for each that it lacks.

    Args:
        reader: of the slide.
        strict: a picture that cannot be decoded is an error, not one that is lacking.

    Raises:
        ImageError: see `strict`.
    """
    pictures: dict[str, NDArray[np.uint8]] = {}
    lacking = []
    for name in ASSOCIATED:
        try:
            picture = reader.associated(name)
        except ImageError as error:
            if strict:
                raise
            lacking.append(str(error))
            continue
        if picture is None:
            lacking.append(f"{reader.path.name} has no {name} picture.")
        else:
            pictures[name] = picture
    return pictures, lacking


def write_associated(pictures: Mapping[str, NDArray[np.uint8]], result: Path) -> None:
    """Write them beside the result; those of an earlier result that is replaced go: they may be another patient's."""
    from PIL import Image

    for name in ASSOCIATED:
        path = associated_file(result, name)
        if name not in pictures:
            path.unlink(missing_ok=True)
            continue
        with replace_when_done(path, overwrite=True) as file:
            Image.fromarray(pictures[name]).save(file, "PNG")
