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
from bundle.host import keep_large_allocations
from bundle.messages import Tally, complain, known_mpp, plan_line, progress_bars, result_line, say, sentence
from bundle.preparation.command import prepare
from bundle.viewing.command import view

if TYPE_CHECKING:
    from bundle.slide_job import Engine, Recipe, Wishes
    from bundle.slide_restoration import Progress, SlideReport, SlideRestorer
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
def restore(
    *images: str,
    output: str = "",
    stop_after: str = "p_diffusion",
    seed: int = 0,
    device: str = "cpu",
    mpp: float | None = None,
    skip_in_focus: bool = False,
    overwrite: bool = False,
    config: str = "",
    weights: str = "",
    tile_px: int = 256,
    batch: int = 1,
    mode: str = "",
    dry_run: bool = False,
    plane: int | None = None,
    compression: str = "",
    quality: int = 90,
    subsampling: str = "422",
    strict: bool = False,
    engine: str = "local",
    workers: int | None = None,
    report: bool = False,
    no_report: bool = False,
    trust: bool = False,
    samples: int = 1,
    revert_untrusted: str = "",
    **unknown: str,
) -> None:
    """Usage: mop restore IMAGE [IMAGE ...] --output DIR [options]

    Restores images and slides; each result keeps its input's name, slides of scanners and DICOM become NAME.ome.tiff.
    A folder as IMAGE takes the images in it. Stopped or killed, the same command goes on with a TIFF or a slide.

        --output DIR         folder of the results, made if needed; or the result itself: restored.ome.tiff,
                             restored.ome.zarr, restored.dicom
        --mode NAME          full (whole chain on tissue), coarse (P-former on tissue) or adaptive (what each tile
                             needs by its distance to focus); default: adaptive for slides, every tile of other images
        --dry-run            say tiles of each kind, minutes and disk, write nothing
        --plane N            which focal plane of a z-stack, from 0
        --stop-after STAGE   p_former (the coarse stage alone, faster) or p_diffusion (the whole chain, default)
        --seed N             of the noise of P-diffusion (default 0); the same seed gives the same pixels
        --device NAME        cpu (default) or cuda
        --mpp X              µm per pixel, where the file does not say or is wrong; trained at 0.25 and 0.5
        --skip-in-focus      leave what is in focus untouched
        --overwrite          replace results of earlier runs
        --config FILE        another configs/inference.json
        --weights FILE       another models/model.pt
        --tile-px N          side of a tile (default 256)
        --batch N            tiles at once (default 1)
        --compression NAME   of a TIFF: lzw (no loss) or jpeg; default: jpeg where a scanner's slide becomes OME-TIFF
        --quality N          of JPEG in a TIFF, 1..100 (default 90)
        --subsampling N      of JPEG's colours in a TIFF, 422 (default) or 420
        --report             NAME_report.html beside the result: what was done where, before and after, one file;
                             default for slides of scanners and DICOM
        --no-report          not for them either
        --trust              NAME_trust.tif and .geojson (QuPath) beside the result: where to doubt it
        --samples N          seeds of P-diffusion whose spread counts as doubt (default 1); with --trust
        --revert-untrusted X replace what the trust map doubts with coarse (the P-former's pixels) or input
        --engine NAME        local (default), or ray: several slides at once, on RAY_ADDRESS or on this machine
        --workers N          of --engine ray; default: one a GPU, or one for every 4 cores
        --strict             stop a slide at a tile that cannot be decoded; default: it is left grey and counted

    JPEG is written with quality 95, PNG and TIFF without loss. Finished blocks of a TIFF or OME-Zarr wait beside it.

    Examples:
        mop restore field.png --output restored
        mop restore slide.svs --output restored.ome.tiff
        mop restore scans/ --output restored --stop-after p_former --skip-in-focus
    """
    refuse_unknown(unknown)
    if stop_after not in ("p_former", "p_diffusion"):
        raise UsageError(f"--stop-after must be p_former or p_diffusion, got {stop_after}.")
    from bundle.loading import CONFIG, WEIGHTS
    from bundle.slide_job import Recipe, Wishes, check_pixel_size, check_trust

    if report and no_report:
        raise UsageError("--report and --no-report exclude each other, both were given.")
    wanted = report or (False if no_report else None)
    wishes = Wishes(mode, mpp, plane, overwrite, compression, quality, subsampling, strict, wanted, trust, samples,
                    revert_untrusted)  # fmt: skip

    def check(reader: ImageReader) -> None:
        check_pixel_size(reader, mpp)
        check_trust(reader, wishes)

    folder = Path(output or ("restored" if dry_run else ""))
    tally = Tally()

    def results_of(image: Path) -> list[Path]:
        return wishes.results(image, _result_of(image, folder, wishes))

    jobs = _readable(images, str(folder) if output or dry_run else "", results_of, overwrite or dry_run, tally, plane,
                     check)  # fmt: skip
    recipe = Recipe(Path(config or CONFIG), Path(weights or WEIGHTS), device, tile_px, batch, stop_after,
                    skip_in_focus, seed, samples)  # fmt: skip
    if jobs and engine == "ray" and not dry_run:
        _restore_by_ray(recipe, jobs, wishes, workers, tally)
    elif jobs:
        _restore_here(recipe, jobs, wishes, dry_run, tally)
    tally.finish()


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
    **unknown: str,
) -> None:
    """Usage: mop focus IMAGE [IMAGE ...] [--output DIR] [options]

    Writes how far each part of an image is out of focus: NAME_focus.png, coloured, with a scale in µm, and
    NAME_focus.tif, signed float32 µm, positive above best focus; large images are averaged to 2048 values a side.
    Of a slide's tissue some tiles are looked at: NAME_focus.png, NAME_focus.geojson (outlines of tissue and of its
    tiles by kind, for QuPath) and NAME_focus.csv (one line a tile), in seconds.

        --output DIR      folder of the results, made if needed (default: the folder you are in)
        --plane N         which focal plane of a z-stack, from 0
        --device NAME     cpu (default) or cuda
        --mpp X           µm per pixel, where the file does not say or is wrong; trained at 0.25 and 0.5
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

    refuse_unknown(unknown)
    tally = Tally()
    jobs = _readable(images, output, lambda image: focus_results(image, Path(output)), overwrite, tally, plane)
    if jobs:
        engine = Recipe(Path(config or CONFIG), Path(weights or WEIGHTS), device, tile_px, batch).engine()
        with progress_bars() as follow:
            for job in jobs:
                with tally.image(job.image), open_image(job.image, plane) as reader:
                    if reader.is_slide:
                        _focus_slide(engine, reader, job, mpp, overwrite)
                    else:
                        _focus_one(engine.restorer, reader, job, mpp, overwrite, follow)
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
    from bundle.slides.reader import open_image

    refuse_unknown(unknown)
    tally = Tally()
    for job in _readable(
        images, output, lambda image: [Path(output) / image.stem.removesuffix(".ome")], overwrite, tally
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


def _readable(
    images: tuple[str, ...], output: str, results_of: Callable[[Path], list[Path]], overwrite: bool, tally: Tally,
    plane: int | None = None, check: Callable[[ImageReader], None] = lambda reader: None,
) -> list[Job]:
    """Jobs whose images open and pass a check: what is wrong with the others is said before the network is loaded."""
    from bundle.slides.files import plan_jobs
    from bundle.slides.reader import open_image

    if not images or not output:
        raise UsageError(f"{'IMAGE' if not images else '--output DIR'} is needed, none was given.")
    jobs, problems = plan_jobs(images, results_of, overwrite)
    for problem in problems:
        tally.fail(problem)
    readable = []
    for job in jobs:
        with tally.image(job.image), open_image(job.image, plane) as reader:
            check(reader)
            readable.append(job)
    return readable


def _result_of(image: Path, output: Path, wishes: Wishes) -> Path:
    from bundle.slides.files import result_of

    result = result_of(image, output)
    wishes.encoding(image, result)  # states its rules before any image is opened
    return result


def _restore_here(recipe: Recipe, jobs: list[Job], wishes: Wishes, dry_run: bool, tally: Tally) -> None:
    from bundle.slide_job import foretell, restore_image

    engine = recipe.engine()
    with progress_bars() as follow:
        for job in jobs:
            with tally.image(job.image):
                if dry_run:
                    for line in foretell(engine, job, wishes):
                        say(line)
                else:
                    report = restore_image(engine, job, wishes, follow(job.image.name))
                    _tell(job, report, wishes, recipe.skip_in_focus)


def _restore_by_ray(recipe: Recipe, jobs: list[Job], wishes: Wishes, workers: int | None, tally: Tally) -> None:
    from bundle.ray_engine import restore_all

    for outcome in restore_all(recipe, jobs, wishes, workers):
        for line in outcome.complaints:
            complain(line.removeprefix("mop: "))
        if outcome.report is None:
            tally.failed += 1
        else:
            _tell(outcome.job, outcome.report, wishes, recipe.skip_in_focus)


def _tell(job: Job, report: SlideReport, wishes: Wishes, skip_in_focus: bool) -> None:
    from bundle.slide_plan import COPIED

    planned = any(report.kinds[kind] for kind in COPIED) or bool(wishes.mode)
    sparing = skip_in_focus or planned
    kinds = f", {plan_line(report.kinds)}" if planned else ""
    kept = f", {report.kept}" if report.kept else ""
    made = ", ".join(map(str, [job.results[0], *wishes.beside(job)]))
    say(result_line(job.image.name, report, sparing) + f"{kinds}{kept}, {made}")
    if report.unreadable:
        complain(f"warning: {report.unreadable} tiles of {job.image.name} hold parts that cannot be decoded: "
                 "they are copied, what is lost is grey.")  # fmt: skip


def _focus_one(
    restorer: SlideRestorer, reader: ImageReader, job: Job, mpp: float | None, overwrite: bool,
    follow: Callable[[str], Progress],
) -> None:  # fmt: skip
    import numpy as np

    from bundle.focus_files import write_focus

    mpp = known_mpp(reader, mpp)
    focus_map = restorer.focus_map(reader, follow(job.image.name))
    files = job.results[:2]
    write_focus(focus_map, mpp, job.image.name, files, overwrite)
    distance = float(np.abs(focus_map.defocus_um).mean())
    say(f"{job.image.name}: mean |defocus| {distance:.2f} µm, {', '.join(map(str, files))}")


def _focus_slide(engine: Engine, reader: ImageReader, job: Job, mpp: float | None, overwrite: bool) -> None:
    import numpy as np

    from bundle.slide_focus import write_slide_focus
    from bundle.slides.tissue import find_tissue

    known_mpp(reader, mpp)
    restorer = engine.restorer
    grid = restorer.grid(reader)
    plan = engine.planner.plan(reader, grid, "adaptive", restorer.tile_restorer.prompter.estimator, restorer.device)
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
