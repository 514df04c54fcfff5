"""Which files a command reads and which it writes, settled before any work starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from bundle.slides.reader import (
    DICOM_FOLDER,
    DICOM_SUFFIXES,
    IMAGE_SUFFIXES,
    JPEG_SUFFIXES,
    PICTURE_SUFFIXES,
    TIFF_SUFFIXES,
)
from bundle.slides.writer import ZARR_SUFFIX


class Job(NamedTuple):
    """One image and what becomes of it."""

    image: Path
    results: list[Path]
    beside: tuple[Path, ...] = ()  # images of its folder and format that were named with it, and itself


class Jobs(NamedTuple):
    """What a command is to do."""

    allowed: list[Job]  # their results are distinct, may be written, and are never the image itself
    finished: list[Job]  # their result is there and stays
    problems: list[str]  # one sentence for each that must not run


def plan_jobs(
    images: Iterable[str], results_of: Callable[[Path], list[Path]], overwrite: bool, skip_existing: bool = False
) -> Jobs:
    """Jobs for images and folders of images.

    Args:
        images: files, or folders whose images are taken (not those of their subfolders).
        results_of: the files that come of an image.
        overwrite: existing results may be replaced.
        skip_existing: an image whose result is there is no problem.
    """
    problems: list[str] = []
    found: dict[Path, None] = {}  # a set that keeps its order: an image named twice is one image
    for name in images:
        path = Path(name)
        members = _images_in(path) if path.is_dir() else [path]
        if not members:
            problems.append(
                f"a folder must hold images ({', '.join(IMAGE_SUFFIXES)}), {path} has none."
            )
        found |= dict.fromkeys(members)
    beside: dict[tuple[Path, str], list[Path]] = {}
    for image in found:
        beside.setdefault((image.parent.resolve(), _format(image)), []).append(image)
    together = {image: group for group in map(tuple, beside.values()) for image in group}
    jobs = [Job(image, results_of(image), together[image]) for image in found]
    counts = Counter(result for job in jobs for result in job.results)
    planned = Jobs([], [], problems)
    for job in jobs:
        finished = skip_existing and job.results[0].exists()
        problem = _problem(job, counts, overwrite or finished)
        if problem is not None:
            problems.append(problem)
        else:
            (planned.finished if finished else planned.allowed).append(job)
    return planned


def _format(image: Path) -> str:
    """Its suffix in one spelling: .jpg and .jpeg are one format, .tif and .tiff another."""
    suffix = image.suffix.lower()
    return next((spellings[0] for spellings in (JPEG_SUFFIXES, TIFF_SUFFIXES) if suffix in spellings), suffix)


def _images_in(folder: Path) -> list[Path]:
    members = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    dicom = [path for path in members if path.suffix.lower() in DICOM_SUFFIXES]
    if dicom:
        from bundle.slides.dicom_reader import one_per_series

        chosen = set(one_per_series(dicom))  # the files of a series are one slide
        members = [path for path in members if path not in dicom or path in chosen]
    return members


def result_of(image: Path, output: Path) -> Path:
    """The restored image's name: `output` itself where it names an image, else a file in the folder `output`.

    A result keeps its input's name where that format is written; slides of other formats become OME-TIFF.
    """
    suffix = output.suffix.lower()
    if suffix in DICOM_SUFFIXES and not output.is_dir():
        raise ValueError(f"a DICOM result is a folder, NAME{DICOM_FOLDER}, got {output.name}.")
    if suffix in (ZARR_SUFFIX, DICOM_FOLDER) or (suffix in PICTURE_SUFFIXES and not output.is_dir()):
        return output
    if image.suffix.lower() in PICTURE_SUFFIXES:
        return output / image.name
    return output / f"{image.name.removesuffix(image.suffix)}.ome.tiff"


def stem_of(path: Path) -> str:
    """The name of an image without its ending: `slide.ome.tiff` -> `slide`."""
    return path.name.removesuffix(path.suffix).removesuffix(".ome")


def file_beside(result: Path, ending: str) -> Path:
    """A file that comes with a result: `slide.ome.tiff`, "trust.tif" -> `slide_trust.tif` in the same folder."""
    return result.parent / f"{stem_of(result)}_{ending}"


def _problem(job: Job, counts: Counter[Path], overwrite: bool) -> str | None:
    for result in job.results:
        if result.exists() and job.image.exists() and result.samefile(job.image):
            return f"a result must not replace its own input, {result} would: choose another folder."
        if counts[result] > 1:
            return f"results must have different names, {counts[result]} inputs would become {result}: {job.image}."
        if result.exists() and not overwrite:
            return f"{result} exists: --overwrite replaces it."
        parent = next(folder for folder in result.parents if folder.exists())
        if not parent.is_dir():
            return f"the output must be a folder, {parent} is a file."
    return None
