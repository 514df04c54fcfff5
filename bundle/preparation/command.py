"""`mop prepare`: parse, call, report; nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

from fire.decorators import SetParseFn, SetParseFns

from bundle.arguments import PARSERS, UsageError, refuse_unknown
from bundle.messages import complain, progress_bars, say, sentence


@SetParseFns(**PARSERS)
@SetParseFn(str)
def prepare(
    *sources: str,
    output: str = "",
    pattern: str = "",
    spacing_um: float | None = None,
    mpp: float | None = None,
    section: str = "",
    workers: int = 0,
    **unknown: str,
) -> None:
    """Usage: mop prepare SOURCE --output DATASET [options]

    Makes a dataset of a scanner's focal stacks: registered planes, all-in-focus targets, depth maps, 256 px patches
    with signed distance and contrast, a split 8:1:1 by slide or patient in datalist.json, and report.html. The same
    command goes on where an earlier one stopped; fields that are there and whose sources did not change are kept.

    SOURCE is a folder (or one file) of: planes as image files (35_32_07.jpg: slide, field, plane; or a folder per
    slide), multi-page TIFF, OME-TIFF with Z, NIfTI, DICOM slide microscopy, folders of mop simulate. Planes are
    counted upwards: plane 0 is the lowest position of the stage.

        --output DATASET     folder of the dataset, made if needed
        --pattern TEXT       how files are named: {slide}, {field}, {plane}, {patient}, as in {slide}/{field}_z{plane}
        --spacing-um X       between planes, where the source does not say or is wrong
        --mpp X              µm per pixel, where the source does not say or is wrong
        --section NAME       all slides into training, validation or testing, instead of 8:1:1
        --workers N          processes (default: one per core, as far as memory reaches)

    Example:
        mop prepare scans --output dataset --spacing-um 0.8 --mpp 0.25
    """
    from bundle.data.splits import SECTIONS
    from bundle.host import usable_processes
    from bundle.preparation.dataset import FIELD_BYTES, Plan, outcome_line, prepare_dataset

    refuse_unknown(unknown)
    if len(sources) != 1 or not output:
        raise UsageError(f"one SOURCE and --output DATASET are needed, got {len(sources)} and {output or 'none'}.")
    if section and section not in SECTIONS:
        raise UsageError(f"--section must be one of {', '.join(SECTIONS)}, got {section}.")
    plan = Plan(Path(sources[0]), Path(output), pattern, spacing_um, mpp, section,
                workers or usable_processes(FIELD_BYTES))
    with progress_bars() as of_image:
        outcome = prepare_dataset(plan, say, lambda problem: complain(sentence(ValueError(problem))),
                                  of_image("fields")("fields"))  # fmt: skip
    say(outcome_line(outcome, plan.dataset))
    if outcome.failed:
        sys.exit(1)
