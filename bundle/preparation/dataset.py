"""Many fields -> a dataset: what is left to do, worker processes, the split, datalist.json.

    DATASET/
      datalist.json             MONAI's form, below
      report.html               depth, shifts, what was left out, best and worst fields
      fields/NAME/              one folder per field, see `field`; it gets its name when all of it is written
        plane_00.tif … label.tif depth_um.tif preview.jpg field.json
        made_from.json          the ledger: sources and settings; a field whose ledger still fits is not made again

datalist.json: {"training": [record …], "validation": […], "testing": […], …}, one record per field and plane:

    image        path of the plane, relative to DATASET       label        path of the all-in-focus target
    slide, field, patient (null if unknown), mpp, plane       position_um  of the plane's stage, 0 in the middle
    location     [[row, col] …] of its patches, 256 x 256 px  depth        path of the depth map, µm
    defocus_um   [signed µm …], one per patch                 contrast     [0..1 …], one per patch

All planes, the target and the depth map of a field have one size. Records stand in natural order of field and plane.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bundle.data.datalist import DATALIST
from bundle.data.focal_stacks import FocalStack, StackSource, open_stack
from bundle.data.splits import SECTIONS, natural_order, split_slides
from bundle.data.stack_search import find_stacks
from bundle.preparation.field import FIELD, FieldFacts, prepare_field, read_facts
from bundle.preparation.patches import PATCH_PX
from bundle.preparation.processes import in_processes, told_error
from bundle.preparation.report import report_page
from bundle.progress import Progress
from bundle.slides.grid import Box
from bundle.slides.whole_files import folder_when_done, replace_when_done

RECIPE = 2  # counted up when the same sources give other results
FIELD_SIDE_PX = 4096  # larger stacks are cut into fields
FIELD_BYTES = 3 * 2**30  # memory that a process needs for a field of 13 planes of that side, with room
MPP, SPACING_UM = (0.05, 5.0), (0.05, 50.0)  # µm; beyond them a unit was mistaken
FIELDS, REPORT, LEDGER, LOCK = "fields", "report.html", "made_from.json", ".lock"


class Plan(NamedTuple):
    """What a person chooses."""

    source: Path
    dataset: Path
    pattern: str = ""
    spacing_um: float | None = None  # None: what the source says
    mpp: float | None = None
    section: str = ""  # all slides into this one; "": 8:1:1
    workers: int = 1


class FieldJob(NamedTuple):
    """One field to prepare: all that a worker process needs."""

    source: StackSource
    box: Box
    name: str
    patient: str | None
    mpp: float
    spacing_um: float
    folder: Path
    ledger: dict[str, Any]


class Outcome(NamedTuple):
    """What became of the dataset."""

    facts: dict[str, FieldFacts]  # field name -> what is known of it, all fields that are there
    made: int  # fields made by this call
    failed: int
    sections: dict[str, str]  # slide -> section


def prepare_dataset(
    plan: Plan, tell: Callable[[str], None], complain: Callable[[str], None], progress: Progress
) -> Outcome:
    """Prepare every field that is not there yet, then write the datalist and the report.

    Args:
        plan: what was chosen.
        tell: hears a line per finished field.
        complain: hears a sentence per field that cannot be used; the others go on.
        progress: hears (fields done, fields in all).

    Raises:
        FileNotFoundError: no such source.
        ValueError: no stack, a scale that is unknown or that no microscope has, fewer than three slides, an empty
            section, a folder that is no dataset.
    """
    if plan.source.resolve() in [plan.dataset.resolve(), *plan.dataset.resolve().parents]:
        raise ValueError(f"the output must lie outside of the source, {plan.dataset} is in {plan.source}.")
    odd = _odd_scale(plan.mpp, plan.spacing_um)
    if odd:
        raise ValueError(odd)
    found = find_stacks(plan.source, plan.pattern)
    if found.ignored:
        complain(f"warning: {len(found.ignored)} images are named like no plane and left out, the first is "
                 f"{found.ignored[0]}: --pattern says how planes are named.")
    for sentence in found.odd:
        complain(sentence)
    jobs, unusable = plan_fields(found.stacks, plan)
    failures = found.problems + unusable
    for failure in failures:
        complain(failure)
    if not jobs:
        raise ValueError(f"a dataset needs fields, of {plan.source} none can be prepared: the sentences above say why.")
    sections = _choose_sections(jobs, found.sections, plan.section)
    with _alone(plan.dataset):
        facts: dict[str, FieldFacts] = {}
        waiting = []
        for job in jobs:
            reason = _why_again(job)
            if reason is None:
                facts[job.name] = read_facts(job.folder)
                continue
            if reason:
                tell(f"{job.name}: prepared again, its {reason} changed")
            waiting.append(job)
        before = _listed_before(plan.dataset / DATALIST)
        if any(job.folder.exists() for job in waiting):  # the list that is there would speak of other fields
            (plan.dataset / DATALIST).unlink(missing_ok=True)
        kept = done = len(facts)
        progress(done, len(jobs))
        for job, result in in_processes(prepare_one, waiting, plan.workers):
            if isinstance(result, Exception):
                failures.append(f"{job.name}: {result}")
                complain(failures[-1])
            else:
                facts[job.name] = result
                tell(field_line(job.name, result))
            done += 1
            progress(done, len(jobs))
        facts = {job.name: facts[job.name] for job in jobs if job.name in facts}
        with replace_when_done(plan.dataset / REPORT, overwrite=True) as file:
            file.write(report_page(plan.dataset / FIELDS, facts, sections, failures).encode())
        _write_datalist(plan, facts, sections, before, complain)
    return Outcome(facts, len(facts) - kept, len(failures), sections)


def plan_fields(stacks: list[StackSource], plan: Plan) -> tuple[list[FieldJob], list[str]]:
    """The fields of all stacks, in natural order, and a sentence for each stack that cannot be used.

    Raises:
        ValueError: the spacing or the pixel size is known neither from a stack nor from the plan.
    """
    jobs: list[FieldJob] = []
    failures: list[str] = []
    for source in stacks:
        try:
            with open_stack(source) as stack:
                boxes, patient = field_boxes(*stack.shape), source.patient or stack.patient
                scale = (stack.mpp, stack.spacing_um)
        except Exception as error:  # noqa: BLE001  # see told_error
            failures.append(f"{source.name}: {told_error(error)}")
            continue
        mpp, spacing_um = _known_scale(source, scale, plan)
        odd = _odd_scale(mpp, spacing_um)
        if odd:
            failures.append(f"{source.name}: {odd}")
            continue
        for box in boxes:
            name = _folder_name(source.name + (f"_r{box.row:05d}c{box.col:05d}" if len(boxes) > 1 else ""))
            settings = {"recipe": RECIPE, "patch_px": PATCH_PX, "mpp": mpp, "spacing_um": spacing_um, "box": list(box)}
            job = FieldJob(source, box, name, patient, mpp, spacing_um, plan.dataset / FIELDS / name, {})
            jobs.append(job._replace(ledger={"settings": settings, "sources": _fingerprints(source)}))
    jobs.sort(key=lambda job: natural_order(job.name))
    for one, other in itertools.pairwise(jobs):
        if one.name == other.name:
            raise ValueError(f"fields need names of their own, {one.source.name!r} and {other.source.name!r} would "
                             f"both become {one.name}: rename one.")
    return jobs, failures


def prepare_one(job: FieldJob) -> FieldFacts:
    """Prepare one field under a temporary name and rename it: it is there whole or not at all."""
    facts = {"slide": job.source.slide, "field": job.name, "patient": job.patient}
    if job.folder.exists() and not (job.folder / FIELD).is_file():
        raise ValueError(f"{job.folder} is no prepared field and is not replaced.")
    with folder_when_done(job.folder, FIELD, overwrite=True) as unfinished:
        stack: FocalStack
        with open_stack(job.source) as stack:
            result = prepare_field(stack, job.box, facts, job.mpp, job.spacing_um, unfinished)
        (unfinished / LEDGER).write_text(json.dumps(job.ledger, indent=1) + "\n", encoding="utf-8")
    return result


def field_boxes(height: int, width: int) -> list[Box]:
    """Equal fields of at most FIELD_SIDE_PX a side that cover a stack."""
    down, across = (max(1, math.ceil(side / FIELD_SIDE_PX)) for side in (height, width))
    rows = [round(height * index / down) for index in range(down + 1)]
    cols = [round(width * index / across) for index in range(across + 1)]
    return [Box(top, left, bottom - top, right - left)
            for top, bottom in zip(rows, rows[1:]) for left, right in zip(cols, cols[1:])]


def field_line(name: str, facts: FieldFacts) -> str:
    """One line on a field, for the terminal."""
    count = len(facts.patches) + sum(facts.left_out.values())
    reasons = ", ".join(f"{number} {reason}" for reason, number in facts.left_out.items() if number)
    farthest = max(math.hypot(*shift) for shift in facts.shifts_px)
    return (f"{name}: {facts.shape[1]} x {facts.shape[0]} px, {len(facts.shifts_px)} planes, shifts up to "
            f"{farthest:.1f} px, {len(facts.patches)} of {count} patches" + (f" ({reasons})" if reasons else ""))


def outcome_line(outcome: Outcome, dataset: Path) -> str:
    """One line on the dataset, for the terminal."""
    patches = sum(len(facts.patches) for facts in outcome.facts.values())
    counts = ", ".join(f"{list(outcome.sections.values()).count(section)} {section}" for section in SECTIONS
                       if section in outcome.sections.values())
    older = len(outcome.facts) - outcome.made
    kept = f" ({older} were there)" if older else ""
    failed = f", {outcome.failed} failed" if outcome.failed else ""
    return (f"{dataset}: {len(outcome.facts)} fields{kept}{failed}, {patches} patches, "
            f"{len(outcome.sections)} slides: {counts}")


def records_of(facts: FieldFacts, name: str) -> list[dict[str, Any]]:
    """The records of one field, one per plane: see the head of this file."""
    folder = f"{FIELDS}/{name}"
    return [{
        "image": f"{folder}/plane_{plane:02d}.tif", "label": f"{folder}/label.tif", "depth": f"{folder}/depth_um.tif",
        "slide": facts.slide, "field": facts.field, "patient": facts.patient, "mpp": facts.mpp, "plane": plane,
        "position_um": position_um, "location": [list(patch.location) for patch in facts.patches],
        "defocus_um": [patch.defocus_um[plane] for patch in facts.patches],
        "contrast": [patch.contrast[plane] for patch in facts.patches],
    } for plane, position_um in enumerate(facts.positions_um)]


def _known_scale(source: StackSource, scale: tuple[float | None, float | None], plan: Plan) -> tuple[float, float]:
    mpp, spacing_um = plan.mpp or scale[0], plan.spacing_um or scale[1]
    if spacing_um is None:
        raise ValueError(f"the µm between planes must be known, {source.name} does not say them: pass --spacing-um.")
    if mpp is None:
        raise ValueError(f"the µm per pixel must be known, {source.name} does not say them: pass --mpp.")
    return mpp, spacing_um


def _odd_scale(mpp: float | None, spacing_um: float | None) -> str | None:
    """What to say of a scale that no microscope has: most likely another unit."""
    for value, (lowest, highest), what, flag in (
        (mpp, MPP, "per pixel", "--mpp"), (spacing_um, SPACING_UM, "between planes", "--spacing-um"),
    ):
        if value is not None and not lowest <= value <= highest:
            return f"the µm {what} must lie between {lowest:g} and {highest:g}, got {value:g}: {flag} sets them."
    return None


def _folder_name(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name)


def _fingerprints(source: StackSource) -> list[dict[str, Any]]:
    stats = [(file.name, file.stat()) for file in source.files]
    return [{"file": name, "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns} for name, stat in stats]


def _why_again(job: FieldJob) -> str | None:
    """None where the field is there and its ledger fits; else what changed, "" for a new field."""
    try:
        ledger = json.loads((job.folder / LEDGER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except ValueError:
        return "ledger"
    changed = [part for part in ("sources", "settings") if ledger.get(part) != job.ledger[part]]
    return " and ".join(changed) if changed else None


def _choose_sections(jobs: list[FieldJob], listed: dict[str, str], section: str) -> dict[str, str]:
    slides: dict[str, str | None] = {}
    for job in jobs:
        patient = slides.setdefault(job.source.slide, job.patient)
        if patient != job.patient:
            raise ValueError(f"a slide is of one patient, {job.source.slide} is of {patient} and of {job.patient}: a "
                             "--pattern with {patient} and {slide} can tell them apart.")
    if section:
        return dict.fromkeys(slides, section)
    return {slide: listed[slide] for slide in slides} if listed else split_slides(slides)


def _write_datalist(
    plan: Plan, facts: dict[str, FieldFacts], sections: dict[str, str], before: dict[str, str],
    complain: Callable[[str], None],
) -> None:
    lists: dict[str, list[dict[str, Any]]] = {one: [] for one in ((plan.section,) if plan.section else SECTIONS)}
    for name, field in facts.items():
        if field.patches:
            lists[sections[field.slide]] += records_of(field, name)
    path = plan.dataset / DATALIST
    empty = [section for section, records in lists.items() if not records]
    if empty:
        path.unlink(missing_ok=True)  # an older list would name what this call has left out
        raise ValueError(f"every section must hold patches, {empty[0]} has none of {len(facts)} fields: "
                         f"{path.name} is not written.")
    moved = [slide for slide, section in before.items() if sections.get(slide, section) != section]
    if moved:
        complain(f"warning: {len(moved)} slides are in another section than before, {moved[0]} first: networks trained "
                 "on the older list have seen slides that are now for testing or validation.")
    held = {"name": plan.source.resolve().name, "patch_px": PATCH_PX, "sections": sections, **lists}
    with replace_when_done(path, overwrite=True) as file:
        file.write(json.dumps(held).encode() + b"\n")


def _listed_before(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["sections"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


@contextmanager
def _alone(dataset: Path) -> Iterator[None]:
    """Hold the dataset for this process alone, and sweep what a killed one left unfinished.

    Raises:
        ValueError: another process prepares it, or the folder holds something else.
    """
    if dataset.exists() and (not dataset.is_dir() or (any(dataset.iterdir()) and not (dataset / LOCK).exists())):
        raise ValueError(f"the output must be a new folder or a dataset of mop prepare, {dataset} holds other files.")
    (dataset / FIELDS).mkdir(parents=True, exist_ok=True)
    with (dataset / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"a dataset may be prepared by one process at a time, {dataset} is in use.") from error
        try:
            _sweep(dataset)
            yield
        finally:
            _sweep(dataset)


def _sweep(dataset: Path) -> None:
    for leftover in [*dataset.glob(".mop-*.tmp"), *(dataset / FIELDS).glob(".mop-*.tmp")]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
