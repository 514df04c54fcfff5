"""`mop COMMAND`: parse, call, report; nothing else. `mop --help` lists the commands."""

from __future__ import annotations

import inspect
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import fire
from fire.decorators import SetParseFn, SetParseFns

from bundle import __version__
from bundle.arguments import PARSERS, UsageError, as_fire_reads, refuse_unknown
from bundle.exporting.command import export
from bundle.host import keep_large_allocations, wait_briefly
from bundle.image_jobs import readable_jobs
from bundle.messages import Tally, complain, known_mpp, plan_line, progress_bars, say, sentence
from bundle.preparation.command import prepare
from bundle.restore_command import restore
from bundle.viewing.command import view

if TYPE_CHECKING:
    from bundle.progress import Follow
    from bundle.slide_job import Engine
    from bundle.slide_restoration import SlideRestorer
    from bundle.slides.files import Job
    from bundle.slides.reader import ImageReader

OVERVIEW = """mop: out-of-focus pathology images brought into focus.

    mop restore  IMAGE [IMAGE ...] --output DIR    sharper images, under the same names
    mop focus    IMAGE [IMAGE ...]                 how far each part is out of focus, µm
    mop view     RESTORED                          before and after in the browser, deep zoom
    mop simulate IMAGE [IMAGE ...] --output DIR    a focal stack of a sharp image
    mop prepare  SOURCE --output DATASET           a scanner's focal stacks as a dataset to train on
    mop experiments [RUNS]                         MLflow's pages of the trainings
    mop doctor                                     what this machine has, and what to do about each gap
    mop export --output FILE                       the network as TorchScript, ONNX, torch.export or TensorRT

IMAGE is a PNG, JPEG, TIFF, OME-TIFF, slide (SVS, NDPI, MRXS, SCN, BIF, Philips) or DICOM slide of any size, 8-bit RGB,
or a folder of them.
mop COMMAND --help shows every option, mop --version the version.

Example:
    mop restore field.png --output restored
"""


@SetParseFns(**PARSERS)
@SetParseFn(str)
def focus(
    *images: str,
    output: str = ".",
    device: str = "cpu",
    mpp: float | None = None,
    overwrite: bool = False,
    config: str = "",
    weights: str = "",
    tile_px: int = 256,
    batch: int = 1,
    plane: int | None = None,
    probes: int = 500,
    **unknown: str,
) -> None:
    """Usage: mop focus IMAGE [IMAGE ...] [--output DIR] [options]

    Writes how far each part of an image is out of focus: NAME_focus.png, coloured, with a scale in µm, and
    NAME_focus.tif, signed float32 µm, positive above best focus; large images are averaged to 2048 values a side.
    Of a slide's tissue some tiles are looked at: NAME_focus.png, NAME_focus.geojson (outlines of tissue and of its
    tiles by kind, for QuPath) and NAME_focus.csv (one line a tile), in seconds. Pixels of a camera that oversamples are
    taken together first; whether it does, the images of a folder, a format and a size say together.

        --output DIR      folder of the results, made if needed (default: the folder you are in)
        --plane N         which focal plane of a z-stack, from 0
        --device NAME     cpu (default) or cuda
        --mpp X           µm per pixel, where the file does not say or is wrong; trained at 0.25 and 0.5
        --probes N        tiles of a slide to look at, at most (default 500); the others take the nearest one's word
        --overwrite       replace results of earlier runs
        --config FILE     another configs/inference.json
        --weights FILE    another models/model.pt
        --tile-px N       side of a tile (default 256)
        --batch N         tiles at once (default 1)

    Example:
        mop focus field.png --output maps
    """
    from bundle.focus_files import focus_results
    from bundle.loading import CONFIG, WEIGHTS
    from bundle.slide_job import Recipe
    from bundle.slides.reader import open_image
    from bundle.wishes import Wishes

    refuse_unknown(unknown)
    tally = Tally()
    jobs = readable_jobs(images, output, lambda image: focus_results(image, Path(output)), overwrite, tally, plane)
    if jobs:
        engine = Recipe(Path(config or CONFIG), Path(weights or WEIGHTS), device, tile_px, batch).engine()
        with progress_bars() as of_image:
            for job in jobs:
                follow = of_image(job.image.name)
                with tally.image(job.image), open_image(job.image, plane) as reader:
                    if reader.is_slide:
                        _focus_slide(engine, reader, job, mpp, overwrite, probes, follow)
                    else:
                        restorer = engine.binned_for(reader, job, Wishes(plane=plane), follow).restorer
                        _focus_one(restorer, reader, job, mpp, overwrite, follow)
    tally.finish()


@SetParseFns(**PARSERS)
@SetParseFn(str)
def simulate(
    *images: str,
    output: str = "",
    planes: int = 13,
    spacing_um: float = 0.8,
    mpp: float | None = None,
    seed: int = 0,
    depth_um: float = 2.0,
    overwrite: bool = False,
    **unknown: str,
) -> None:
    """Usage: mop simulate IMAGE [IMAGE ...] --output DIR [options]

    Simulates a scanner's focal stack of a sharp image over uneven tissue: DIR/NAME/ with plane_00.png and on,
    relief_um.tif (the stage position at which each pixel is sharpest) and drawn.json (all that was drawn).

        --output DIR       folder of the results, made if needed
        --planes N         focal planes (default 13); the middle one lies at 0 µm
        --spacing-um X     between planes (default 0.8)
        --mpp X            µm per pixel (default: what the file says, else 0.25); below 0.4 NA 0.75, else NA 0.4
        --seed N           of relief and noise (default 0)
        --depth-um X       the relief reaches from -X to X (default 2)
        --overwrite        replace stacks of earlier runs

    Example:
        mop simulate sharp.png --output stacks --planes 5
    """
    from bundle.simulation import StackPlan, simulate_image
    from bundle.slides.files import stem_of
    from bundle.slides.reader import open_image

    refuse_unknown(unknown)
    tally = Tally()
    for job in readable_jobs(
        images, output, lambda image: [Path(output) / stem_of(image)], overwrite, tally
    ):
        with tally.image(job.image), open_image(job.image) as reader:
            plan = StackPlan(planes, spacing_um, mpp or reader.mpp or 0.25, depth_um, seed)
            simulate_image(reader, plan, job.results[0], overwrite)
            say(f"{job.image.name}: {planes} planes {spacing_um} µm apart, {plan.mpp:.4g} µm/px, {job.results[0]}")
    tally.finish()


@SetParseFns(**PARSERS)
@SetParseFn(str)
def doctor(*images: str, config: str = "", weights: str = "", **unknown: str) -> None:
    """Usage: mop doctor [options]

    Says what this machine has: Python, memory, disk, GPU, readers, weights with their sha256; and what to do about
    each gap. Ends with 1 where restoring would not work.

        --config FILE     another configs/inference.json
        --weights FILE    another models/model.pt

    Example:
        mop doctor
        mop restore slide.svs --output restored.ome.tiff
    """
    refuse_unknown(unknown)
    if images:
        raise UsageError(f"doctor takes no images, got {images[0]}.")
    from bundle.doctor import examine
    from bundle.loading import CONFIG, WEIGHTS

    findings = examine(Path(config or CONFIG), Path(weights or WEIGHTS))
    for finding in findings:
        say(finding.line)
    if any(finding.fatal for finding in findings):
        sys.exit(1)


@SetParseFns(**PARSERS)
@SetParseFn(str)
def experiments(runs: str = "runs", tracking_uri: str = "", port: int = 5000, **unknown: str) -> None:
    """Usage: mop experiments [RUNS] [options]

    Opens MLflow's pages of the trainings that were run with --tracking configs/mlflow.json, for this machine's own
    browser alone. Ctrl-C ends it.

        RUNS                  folder of the runs (default runs)
        --tracking-uri URI    another store than RUNS/mlflow.db
        --port N              of the address (default 5000)

    Example:
        mop experiments runs --port 5001
    """
    import subprocess

    from bundle.training.experiments import refuse_telemetry, show_command, store_of

    refuse_unknown(unknown)
    command = show_command(tracking_uri or store_of(Path(runs)), port)
    say(f"http://127.0.0.1:{port} by: {' '.join(command)}")
    refuse_telemetry()
    if subprocess.run(command, check=False).returncode:
        raise ValueError(f"mlflow must be able to serve port {port}, but it ended at once; see its message above.")


def _focus_one(
    restorer: SlideRestorer, reader: ImageReader, job: Job, mpp: float | None, overwrite: bool,
    follow: Follow,
) -> None:  # fmt: skip
    import numpy as np

    from bundle.focus_files import write_focus

    mpp = known_mpp(reader, mpp)
    focus_map = restorer.focus_map(reader, follow("tiles"))
    files = job.results[:2]
    write_focus(focus_map, mpp, job.image.name, files, overwrite)
    distance = float(np.abs(focus_map.defocus_um).mean())
    say(f"{job.image.name}: mean |defocus| {distance:.2f} µm, {', '.join(map(str, files))}")


def _focus_slide(
    engine: Engine, reader: ImageReader, job: Job, mpp: float | None, overwrite: bool, probes: int,
    follow: Follow,
) -> None:  # fmt: skip
    import numpy as np

    from bundle.slide_focus import write_slide_focus
    from bundle.slide_job import PLANNING
    from bundle.slides.tissue import find_tissue

    known_mpp(reader, mpp)
    restorer = engine.restorer
    grid = restorer.grid(reader)
    estimator, progress = restorer.estimator, follow(PLANNING)
    plan = engine.planner.plan(reader, grid, "adaptive", estimator, restorer.device, progress, probes)
    files = [job.results[0], *job.results[2:]]
    write_slide_focus(reader, grid, plan, find_tissue(reader), files, overwrite)
    distance = float(np.nanmean(np.abs(plan.defocus_um)))
    made = ", ".join(map(str, files))
    say(f"{job.image.name}: mean |defocus| {distance:.2f} µm, {plan_line(plan.counts())}, {made}")


COMMANDS: dict[str, Callable[..., None]] = {
    "restore": restore,
    "focus": focus,
    "view": view,
    "simulate": simulate,
    "prepare": prepare,
    "experiments": experiments,
    "export": export,
    "doctor": doctor,
}


def _run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        say(OVERVIEW.rstrip())
    elif argv[0] == "--version":
        say(f"mop {__version__}")
    elif argv[0] in COMMANDS and {"-h", "--help"} & set(argv):
        say(inspect.getdoc(COMMANDS[argv[0]]) or "")
    else:
        arguments = as_fire_reads(argv, COMMANDS)
        # Damage in a TIFF is told in our own sentence.
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)
        fire.Fire(COMMANDS, command=arguments, name="mop")


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: without the program's name; None takes the process's own.

    Returns:
        0, or 1 where an image or the network failed, 2 where the command line is wrong, 130 after Ctrl-C.
    """
    if argv is None:
        argv = sys.argv[1:]
        keep_large_allocations()
        wait_briefly()
        # A plain kill then unwinds the stack, and temporary files go.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        _run(list(argv))
    except UsageError as error:
        complain(sentence(error))
        return 2
    except (ValueError, OSError) as error:
        complain(sentence(error))
        return 1
    except KeyboardInterrupt:
        complain("stopped; finished images and blocks are kept, the same command goes on.")
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
