"""`mop restore`: parse, call, report; nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fire.decorators import SetParseFn, SetParseFns

from bundle.arguments import PARSERS, UsageError, refuse_unknown
from bundle.image_jobs import readable_jobs
from bundle.messages import Tally, complain, plan_line, progress_bars, result_line, say

if TYPE_CHECKING:
    from bundle.slide_job import Recipe
    from bundle.slide_restoration import SlideReport
    from bundle.slides.files import Job
    from bundle.slides.reader import ImageReader
    from bundle.wishes import Wishes


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
    skip_existing: bool = False,
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
    associated: bool = False,
    binning: int | None = None,
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
        --binning N          2: restored at several sizes of pixels, averaged, for a camera whose pixels are finer than
                             what its optics resolve; 1: as it is; default: what the images of a folder, a format
                             and a size say together, but 1 where an image has fine detail to lose, and for slides
        --skip-in-focus      leave what is in focus untouched
        --overwrite          replace results of earlier runs
        --skip-existing      leave results that are there, whatever made them, and restore the others
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
        --associated         NAME_label.png and NAME_macro.png beside the result, which may show a patient's name
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
    from bundle.slide_job import Recipe, check_pixel_size, check_trust
    from bundle.slides.writer import drop_leftovers
    from bundle.wishes import Wishes

    if overwrite and skip_existing:
        raise UsageError("--overwrite and --skip-existing exclude each other, both were given.")
    if report and no_report:
        raise UsageError("--report and --no-report exclude each other, both were given.")
    wanted = report or (False if no_report else None)
    wishes = Wishes(mode, mpp, plane, overwrite, compression, quality, subsampling, strict, wanted, trust, samples,
                    revert_untrusted, associated, binning)  # fmt: skip

    def check(reader: ImageReader) -> None:
        check_pixel_size(reader, mpp)
        check_trust(reader, wishes)

    folder = Path(output or ("restored" if dry_run else ""))
    tally = Tally()

    def results_of(image: Path) -> list[Path]:
        result = _result_of(image, folder, wishes)
        if not dry_run:
            drop_leftovers(result)
        return wishes.results(image, result)

    jobs = readable_jobs(images, str(folder) if output or dry_run else "", results_of, overwrite or dry_run, tally,
                         plane, check, skip_existing)  # fmt: skip
    recipe = Recipe(Path(config or CONFIG), Path(weights or WEIGHTS), device, tile_px, batch, stop_after,
                    skip_in_focus, seed, samples)  # fmt: skip
    if jobs and engine == "ray" and not dry_run:
        _restore_by_ray(recipe, jobs, wishes, workers, tally)
    elif jobs:
        _restore_here(recipe, jobs, wishes, dry_run, tally)
    tally.finish()


def _result_of(image: Path, output: Path, wishes: Wishes) -> Path:
    from bundle.slides.files import result_of

    result = result_of(image, output)
    wishes.encoding(image, result)  # states its rules before any image is opened
    return result


def _restore_here(recipe: Recipe, jobs: list[Job], wishes: Wishes, dry_run: bool, tally: Tally) -> None:
    from bundle.slide_job import foretell, restore_image

    engine = recipe.engine()
    with progress_bars() as of_image:
        for job in jobs:
            with tally.image(job.image):
                if dry_run:
                    for line in foretell(engine, job, wishes):
                        say(line)
                else:
                    report = restore_image(engine, job, wishes, of_image(job.image.name))
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
    pictures = filter(Path.exists, wishes.pictures(job.results[0]))
    made = ", ".join(map(str, [job.results[0], *wishes.beside(job), *pictures]))
    say(result_line(job.image.name, report, sparing) + f"{kinds}{kept}, {made}")
    if report.unreadable:
        complain(f"warning: {report.unreadable} tiles of {job.image.name} hold parts that cannot be decoded: "
                 "they are copied, what is lost is grey.")  # fmt: skip
