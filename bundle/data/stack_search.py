"""Find the focal stacks in a folder and name them: which files are one stack, of which slide, field and patient.

    pattern       text with {slide}, {field}, {plane}, {patient}: `{slide}/{field}_{plane}` reads `C22/35_32_07.jpg`
                  as plane 7 of field 35_32 of slide C22. It is compared with the end of the path, its suffix may be
                  left out. With {plane} it names planes in files of their own, without it files or folders of stacks.

Without a pattern an image in a subfolder is `{slide}/{field}_{plane}`, and directly in the folder
`{slide}_{field}_{plane}`; a stack in a subfolder is `{slide}/{field}`, and directly in the folder `{slide}_{field}`, or
its whole name is the slide.

The layout of the method's authors is known too: a folder per slide with `xxx_01.jpg …`, their fused image `Z_xxx.jpg`
(not read: it is not registered to ours) and text lists train*.txt, val*.txt, test*.txt, whose lines start with the path
of a plane. Such lists decide the split.
"""

from __future__ import annotations

import re
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from bundle.data.focal_stacks import DRAWN, StackSource
from bundle.data.splits import TESTING, TRAINING, VALIDATION, natural_order
from bundle.slides.reader import PICTURE_SUFFIXES, SCANNER_SUFFIXES, TIFF_SUFFIXES

NIFTI_SUFFIXES, DICOM_SUFFIX = (".nii", ".nii.gz"), ".dcm"
FUSED = re.compile(r"Z_.+\.jpe?g", re.IGNORECASE)  # the authors' fused images
LISTS = {"train": TRAINING, "val": VALIDATION, "test": TESTING}  # how a list's name starts
PLANE_SUFFIXES = PICTURE_SUFFIXES + SCANNER_SUFFIXES
SUFFIX = re.compile(r"(\.ome)?\.(nii\.gz|" + "|".join(suffix[1:] for suffix in (*PLANE_SUFFIXES, ".nii", DICOM_SUFFIX))
                    + ")$", re.IGNORECASE)
PARTS = ("patient", "slide", "field", "plane")


class Found(NamedTuple):
    """What a search found."""

    stacks: list[StackSource]
    problems: list[str]  # a sentence for each stack that cannot be used
    sections: dict[str, str]  # slide -> section, from text lists; empty without them
    ignored: list[str]  # images that are no plane of any stack
    odd: list[str]  # a sentence for each slide with another number of planes than most


class NamePattern:
    """A pattern of paths.

    Raises:
        ValueError: unknown or repeated parts.
    """

    def __init__(self, text: str) -> None:
        pieces = re.split(r"\{(\w*)\}", text)
        self.parts = pieces[1::2]
        if not self.parts or len(set(self.parts)) < len(self.parts) or not set(self.parts) <= set(PARTS):
            allowed = ", ".join(f"{{{part}}}" for part in PARTS)
            raise ValueError(f"--pattern must be made of {allowed}, each at most once, got {text}.")
        body = "".join((r"(?P<plane>\d+)" if piece == "plane" else f"(?P<{piece}>[^/]+)") if place % 2
                       else re.escape(piece) for place, piece in enumerate(pieces))
        self.names_suffix = bool(SUFFIX.search(text))
        self.expression = re.compile(rf"(?:.*/)?{body}", re.IGNORECASE)

    def read(self, path: Path, source: Path) -> dict[str, str] | None:
        """The parts of a path below `source`, None where it does not match; slide and field are always there."""
        name = path.relative_to(source.parent).as_posix()
        found = self.expression.fullmatch(name if self.names_suffix else SUFFIX.sub("", name))
        if found is None:
            return None
        named = {part: found[part] for part in self.parts}
        return {"slide": path.parent.name, "field": ""} | named


def find_stacks(source: Path, pattern: str = "") -> Found:
    """The stacks of a file or folder, in natural order of their names.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: nothing in it is a focal stack, the pattern is wrong, or a text list is.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} is missing.")
    chosen = NamePattern(pattern) if pattern else None
    files = [source] if source.is_file() else sorted(
        path for path in source.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(source).parts))
    root = source.parent if source.is_file() else source
    images = [file for file in files if file.suffix.lower() in PLANE_SUFFIXES]
    simulated = {file.parent for file in files if file.name == DRAWN}
    images = [file for file in images if file.parent not in simulated]
    stacks: list[StackSource] = []
    problems: list[str] = []
    ignored: list[str] = []
    if chosen is None or "plane" not in chosen.parts:
        stacks += [_named("simulated", _planes_of(folder), folder, root, chosen) for folder in sorted(simulated)]
        stacks += [_named("nifti", (file,), file, root, chosen) for file in files
                   if file.name.lower().endswith(NIFTI_SUFFIXES)]
        series = _dicom_series(file for file in files if file.suffix.lower() == DICOM_SUFFIX)
        stacks += [_named("dicom", members, members[0].parent if series_of_folder else members[0], root, chosen)
                   for members, series_of_folder in series]
        volumes = [file for file in images if file.suffix.lower() in TIFF_SUFFIXES and _has_pages(file)]
        stacks += [_named("tiff", (file,), file, root, chosen) for file in volumes]
        images = [file for file in images if file not in set(volumes)]
    if chosen is None or "plane" in chosen.parts:
        by_name, ignored, problems = _plane_stacks(images, root, chosen)
        stacks += by_name
    stacks, clashes = _distinct(_with_patients(stacks))
    if not stacks and not problems and not clashes:
        raise ValueError(f"{source} must hold focal stacks (planes named like 35_32_07.jpg, TIFF, NIfTI, DICOM, or "
                         f"folders of mop simulate), none is among its {len(files)} files: --pattern tells names.")
    stacks.sort(key=lambda stack: natural_order(stack.name))
    return Found(stacks, problems + clashes, _sections(files, stacks), ignored, _odd_slides(stacks))


def _named(form: str, files: tuple[Path, ...], path: Path, root: Path, pattern: NamePattern | None) -> StackSource:
    """A stack in a file or folder, `path`, whose slide and field follow from its name."""
    stem = SUFFIX.sub("", path.name)
    parts = pattern.read(path, root) if pattern else None
    if parts is not None:
        return StackSource(form, files, parts["slide"], parts["field"], parts.get("patient"))
    if path.parent != root and path != root:
        return StackSource(form, files, path.parent.name, stem)
    slide, _, field = stem.rpartition("_")
    return StackSource(form, files, slide, field) if slide and field else StackSource(form, files, stem, "")


def _plane_stacks(
    images: list[Path], root: Path, pattern: NamePattern | None
) -> tuple[list[StackSource], list[str], list[str]]:
    """Images grouped into stacks by their names; images without a plane number; problems."""
    release = {file.parent for file in images if FUSED.fullmatch(file.name)}
    groups: dict[tuple[str | None, str, str], dict[int, Path]] = defaultdict(dict)
    ignored, problems = [], []
    for file in images:
        if pattern is None and file.parent in release and FUSED.fullmatch(file.name):
            continue
        parts = (pattern or _usual(file, root, release)).read(file, root)
        if parts is None:
            ignored.append(file.relative_to(root).as_posix())
            continue
        planes = groups[parts.get("patient"), parts["slide"], parts["field"]]
        plane = int(parts["plane"])
        if plane in planes:
            problems.append(f"a plane must be one file, plane {plane} of {parts['slide']}_{parts['field']} is "
                            f"{planes[plane].relative_to(root)} and {file.relative_to(root)}.")
            continue
        planes[plane] = file
    fields: dict[tuple[str | None, str], list[frozenset[int]]] = defaultdict(list)
    for (patient, slide, _), planes in groups.items():
        fields[patient, slide].append(frozenset(planes))
    stacks = []
    for (patient, slide, field), planes in groups.items():
        source = StackSource("planes", tuple(planes[index] for index in sorted(planes)), slide, field, patient)
        of_slide = fields[patient, slide]
        # What most fields of the slide have; of two that are as frequent the larger.
        usual = max(of_slide, key=lambda numbers: (of_slide.count(numbers), len(numbers)))
        wanted = set(range(min(usual), max(usual) + 1))
        missing, stray = sorted(wanted - set(planes)), sorted(set(planes) - wanted)
        if missing:
            problems.append(f"every plane of a stack must be there, {source.name} has "
                            f"{len(planes)} and lacks plane {', '.join(map(str, missing[:5]))}.")
            continue
        if stray:
            problems.append(f"fields of a slide must have the same planes, {source.name} alone has "
                            f"{planes[stray[0]].name}.")
            continue
        stacks.append(source)
    return stacks, ignored, problems


def _usual(file: Path, root: Path, release: set[Path]) -> NamePattern:
    """The pattern of planes where none was given."""
    below = file.parent != root or file.parent in release
    return NamePattern("{slide}/{field}_{plane}" if below else "{slide}_{field}_{plane}")


def _planes_of(folder: Path) -> tuple[Path, ...]:
    planes = sorted(folder.glob("plane_*.png"), key=lambda file: natural_order(file.name))
    return (*planes, folder / DRAWN)


def _has_pages(file: Path) -> bool:
    """Whether a TIFF holds several planes; a file that does not open is told when its turn comes."""
    import tifffile

    from bundle.slides.tiff_reader import is_cut_short

    try:
        with tifffile.TiffFile(file) as tiff:
            # A pyramid's levels are pages too, but not of the first series.
            if len(tiff.series[0].pages) > 1 or len({series.dtype for series in tiff.series}) > 1:
                return True
            return is_cut_short(tiff)
    except (ValueError, OSError, LookupError, TypeError, struct.error):
        return True


def _dicom_series(files: Iterable[Path]) -> list[tuple[tuple[Path, ...], bool]]:
    """The files of each series, and whether it has its folder for itself."""
    series: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for file in files:
        try:
            from pydicom import dcmread
            from pydicom.errors import InvalidDicomError
        except ImportError:  # the reader will say which package is needed
            series[file.parent, ""].append(file)
            continue
        try:
            uid = str(dcmread(file, specific_tags=["SeriesInstanceUID"], stop_before_pixels=True).SeriesInstanceUID)
        except (InvalidDicomError, OSError, AttributeError, ValueError):
            uid = file.name
        series[file.parent, uid].append(file)
    alone = {folder: sum(other == folder for other, _ in series) == 1 for folder, _ in series}
    return [(tuple(members), alone[folder] and len(members) > 1) for (folder, _), members in series.items()]


def _with_patients(stacks: list[StackSource]) -> list[StackSource]:
    """Slides of several patients that have one name get their patients' names in front."""
    patients: dict[str, set[str | None]] = defaultdict(set)
    for stack in stacks:
        patients[stack.slide].add(stack.patient)
    return [stack._replace(slide=f"{stack.patient}_{stack.slide}") if stack.patient and len(patients[stack.slide]) > 1
            else stack for stack in stacks]


def _odd_slides(stacks: list[StackSource]) -> list[str]:
    """Slides whose planes are fewer or more than those of most: a plane that all fields of a slide lack shows here."""
    planes = {stack.slide: len(stack.files) for stack in stacks if stack.form == "planes"}
    usual = Counter(planes.values()).most_common(1)
    return [f"warning: {slide} has {count} planes and most slides have {usual[0][0]}: one that is missing at an end "
            "shifts the middle." for slide, count in planes.items() if count != usual[0][0]]


def _distinct(stacks: list[StackSource]) -> tuple[list[StackSource], list[str]]:
    """Stacks whose names, as folders, differ; a sentence for the others."""
    by_name: dict[str, list[StackSource]] = defaultdict(list)
    for stack in stacks:
        by_name[stack.name.lower()].append(stack)
    clashes = [f"stacks must have different names, {members[0].files[0]} and {members[1].files[0]} are both "
               f"{members[0].name}: --pattern can tell them apart." for members in by_name.values() if len(members) > 1]
    return [members[0] for members in by_name.values() if len(members) == 1], clashes


def _sections(files: list[Path], stacks: list[StackSource]) -> dict[str, str]:
    """Sections that text lists name: `…/slide/35_32_07.jpg contrast distance` on each line."""
    slides = {stack.slide for stack in stacks}
    sections: dict[str, str] = {}
    strange = ""
    for file in files:
        section = next((LISTS[start] for start in LISTS if file.name.lower().startswith(start)), None)
        if section is None or file.suffix.lower() != ".txt":
            continue
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            path = re.split(r"[/\\]+", re.sub(r"(\.\w+)(\s.*)?$", r"\1", line.strip()))
            slide = path[-2] if len(path) > 1 else ""
            if slide not in slides:
                strange = strange or (f"{file.name} with {path[-1]}" if SUFFIX.search(path[-1]) else "")
                continue
            if sections.setdefault(slide, section) != section:
                raise ValueError(f"a slide may be in one section only, {file.name} puts {slide} into {section} and "
                                 f"another list into {sections[slide]}.")
    if strange and not sections:
        raise ValueError(f"text lists name planes as slide/plane, of those found here they name none ({strange}): put "
                         "each slide into a folder of its own, or remove the lists for a split of 8:1:1.")
    missing = sorted(slides - set(sections))
    if sections and missing:
        raise ValueError(f"text lists must name every slide, {missing[0]} is in none of them.")
    return sections
