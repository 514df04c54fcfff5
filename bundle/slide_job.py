"""One image or slide from its file to its result's file: plan, restore, write, go on after a stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bundle.loading import load_slide_planner, load_tile_restorer
from bundle.messages import complain, known_mpp, plan_line, stop_after_block
from bundle.progress import Follow, unfollowed
from bundle.provenance import job_of, notes_of
from bundle.slide_plan import Kind, NoTissueError, SlidePlan, SlidePlanner, plan_all
from bundle.slide_restoration import SlideReport, SlideRestorer, TrustKeeping
from bundle.slides.associated import read_associated, write_associated
from bundle.slides.damage import MarkingReader
from bundle.slides.files import Job, file_beside
from bundle.slides.grid import Box
from bundle.slides.jpeg_tiles import CannotCopyError, JpegTiles
from bundle.slides.ledger import free_bytes
from bundle.slides.pyramid import Record
from bundle.slides.reader import (
    DICOM_FOLDER,
    ImageError,
    ImageReader,
    open_image,
)
from bundle.slides.tissue import PICTURE_PX
from bundle.slides.whole_files import replace_when_done
from bundle.slides.writer import ImageSink, LedgerSink, TiffSink, open_sink, unfinished_of
from bundle.trust.cells import CellStore
from bundle.trust.gauge import LAYERS, LIMIT, TrustGauge, cell_side_px
from bundle.trust.map import TrustMap, trust_files, trust_map, write_trust
from bundle.wishes import Wishes, report_file

# What a progress bar says is under way.
HASHING, PLANNING, RESTORING = "MB hashed", "tiles seen", "tiles restored"
LOOKING_AGAIN, WRITING = "tiles seen again", "rows written"

# Bytes of a result for each raw byte, with its levels, on stained tissue; a guess for --dry-run.
_SIZE_OF_RESULT = {"lzw": 0.9, "jpeg": 0.2}


class Engine(NamedTuple):
    """What restores, and the files it came from."""

    restorer: SlideRestorer
    planner: SlidePlanner
    config: Path
    weights: Path

    def binned_for(self, reader: ImageReader, job: Job, wishes: Wishes, follow: Follow = unfollowed) -> Engine:
        """The engine of one image: in the binning that is wished, or as it and those of its camera say themselves."""
        wanted = wishes.binning
        if wanted is None:
            wanted = self.restorer.binning_of(reader, job.beside, wishes.plane, follow)
        return self if wanted == self.restorer.binning else self._replace(restorer=self.restorer.binned(wanted))


class Recipe(NamedTuple):
    """How an engine is built, wherever it is built."""

    config: Path
    weights: Path
    device: str = "cpu"
    tile_px: int = 256
    batch: int = 1
    stop_after: str = "p_diffusion"
    skip_in_focus: bool = False
    seed: int = 0
    samples: int = 1

    def engine(self) -> Engine:
        """The engine; see `load_tile_restorer` for what can be wrong with its files."""
        network = load_tile_restorer(self.config, self.weights, self.device)
        network.stop_after, network.skip_in_focus, network.seed = self.stop_after, self.skip_in_focus, self.seed
        network.samples = self.samples
        restorer = SlideRestorer(network, self.tile_px, overlap_px=self.tile_px // 4, batch=self.batch)
        return Engine(restorer, load_slide_planner(self.config), self.config, self.weights)


def restore_image(engine: Engine, job: Job, wishes: Wishes, follow: Follow = unfollowed) -> SlideReport:
    """Restore one image; an unfinished run of the same job is gone on with.

    Args:
        engine: what restores.
        job: the image and its result.
        wishes: what the user asked for.
        follow: gives the progress of every phase.

    Raises:
        ImageError: the image cannot be restored.
        NoTissueError: a slide shows none; its picture lies beside where the result would be.
        ValueError: the source or the settings changed since the unfinished run.
        RestorationStopped: Ctrl-C; the finished blocks are kept.
    """
    result = job.results[0]
    with open_image(job.image, wishes.plane) as source:
        reader = source if wishes.strict else MarkingReader(source)
        check_pixel_size(reader, wishes.mpp)
        engine = engine.binned_for(reader, job, wishes, follow)
        restorer = engine.restorer
        mpp = known_mpp(reader, wishes.mpp)
        work = job_of(reader, engine.weights, engine.config, _settings(engine, reader, wishes),
                      follow(HASHING))  # fmt: skip
        pictures = _pictures(reader, wishes.strict) if wishes.associated else {}
        made_s = max(file.stat().st_mtime for file in reader.files)
        record = Record(result.name, mpp, reader.icc_profile, notes_of(work, reader), tuple(reader.files), made_s)
        opened = time.perf_counter()
        encoding = wishes.encoding(job.image, result)
        with open_sink(
            result, reader.shape, record, wishes.overwrite, encoding, restorer.kept_block_px, work
        ) as sink:
            kept = sink.ledger.folder / "plan.npz" if isinstance(sink, LedgerSink) else None
            if kept is not None and kept.is_file():
                plan: SlidePlan | None = SlidePlan.load(kept)
            else:
                plan = _plan_or_picture(engine, reader, wishes, result, follow)
                if kept is not None and plan is not None:
                    plan.save(kept)
            planned = time.perf_counter()
            told = _keep_tiles(engine, reader, sink, plan)
            trust = _trust_keeping(restorer, reader, mpp, wishes, sink) if wishes.judges else None
            with stop_after_block(sink.keeps_work) as stopped:
                report = restorer.restore(reader, sink, follow(RESTORING), plan, stopped, trust)
            if wishes.strict and report.unreadable:
                raise ImageError(
                    f"every tile must be readable with --strict, an earlier run without it marked {report.unreadable}: "
                    f"delete {unfinished_of(result)} first."
                )
            # Before the result gets its name: what a kill interrupts here is done again from the finished blocks.
            judged = None
            if trust is not None and mpp is not None:
                judged = trust_map(trust.gauge, trust.cells.whole(), trust.cells.cell_px, reader.shape)
                write_trust(judged, mpp, trust_files(result), overwrite=True)
            if wishes.reports(job.image):
                seconds = {"plan": planned - opened, "restoration (of this run)": report.seconds}
                _report(engine, reader, sink, plan, report, judged, record, seconds, follow)
            sink.progress = follow(WRITING)
        if isinstance(reader, MarkingReader) and reader.marked and plan is not None:
            copies = restorer.copied_tiles(reader, plan)  # the sink has read them by now
            marked = sum(any(_touch(tile, place) for place in reader.marked) for tile in copies)
            report = report._replace(unreadable=report.unreadable + marked)
        report = report._replace(kept=told() if told else "")
        if wishes.reports(job.image):
            from bundle.slide_report.page import complete_report

            complete_report(report_file(result), _known_at_last(report))
        if wishes.associated:
            write_associated(pictures, result)
        return report


def _known_at_last(report: SlideReport) -> list[str]:
    """Sentences of the page that need the finished result."""
    said = [f"{report.kept[0].upper()}{report.kept[1:]}."] if report.kept else []
    if report.unreadable:
        said.append(f"{report.unreadable} tiles hold parts that cannot be decoded: these parts are grey, no tissue.")
    return said


def _trust_keeping(restorer: SlideRestorer, reader: ImageReader, mpp: float | None, wishes: Wishes, sink: ImageSink
                   ) -> TrustKeeping:  # fmt: skip
    check_trust(reader, wishes)
    gauge = TrustGauge(mpp or 0.0, wishes.revert_untrusted)
    folder = sink.ledger.folder / "trust" if isinstance(sink, LedgerSink) else None
    return TrustKeeping(gauge, CellStore(reader.shape, cell_side_px(restorer.kept_block_px), len(LAYERS), folder))


def _report(engine: Engine, reader: ImageReader, sink: ImageSink, plan: SlidePlan | None, report: SlideReport,
            trust: TrustMap | None, record: Record, seconds: dict[str, float], follow: Follow) -> None:
    from bundle.slide_report.page import Account, report_page, write_report
    from bundle.slide_report.survey import survey

    started = time.perf_counter()
    restorer = engine.restorer
    grid = restorer.grid(reader)
    plan = plan or plan_all(grid)
    seen = survey(reader, sink, grid, plan, restorer.kept_block_px, restorer.estimator, restorer.device,
                  follow(LOOKING_AGAIN))  # fmt: skip
    seconds = seconds | {"survey for this page": time.perf_counter() - started}
    account = Account(sink.path.name, reader.path.name, record.mpp, report.untouched, seconds, record.notes)
    page = report_page(reader, sink, grid, plan, seen, account, trust)
    write_report(report_file(sink.path), page, overwrite=True)


def _pictures(reader: ImageReader, strict: bool) -> dict[str, NDArray[np.uint8]]:
    """The scanner's pictures of the glass, read before hours of work; what a slide lacks is said."""
    pictures, lacking = read_associated(reader, strict)
    for problem in lacking:
        complain(f"warning: {problem}")
    return pictures


def foretell(engine: Engine, job: Job, wishes: Wishes) -> list[str]:
    """What `restore_image` would do: tiles of each kind, minutes and disk, one line each; nothing is written."""
    with open_image(job.image, wishes.plane) as source:
        reader = source if wishes.strict else MarkingReader(source)
        check_pixel_size(reader, wishes.mpp)
        engine = engine.binned_for(reader, job, wishes)
        restorer = engine.restorer
        known_mpp(reader, wishes.mpp)
        plan = _plan(engine, reader, wishes)
        grid = restorer.grid(reader)
        kinds = dict.fromkeys(Kind, 0) | {Kind.STRONG: len(grid)} if plan is None else plan.counts()
        runs = {Kind.STRONG: len(grid)} if plan is None else restorer.runs(reader, plan)
        seconds = sum(count * restorer.seconds_a_tile(kind) for kind, count in runs.items() if count)
        raw = reader.shape[0] * reader.shape[1] * 3
        changed = sum(runs.values()) / len(grid)
        encoding = wishes.encoding(job.image, job.results[0])
        work, made = raw * min(1.0, changed), raw * _SIZE_OF_RESULT[encoding.compression]
        free = free_bytes(job.results[0].parent)
    name = job.image.name
    return [
        f"{name}: {plan_line(kinds)}",
        f"{name}: about {seconds / 60:.1f} min on {restorer.device.type}, up to {_gb(work)} of work beside the result, "
        f"about {_gb(made)} of result, {_gb(free)} free",
    ]


def plans(reader: ImageReader, wishes: Wishes) -> str:
    """The mode of an image's plan, empty where every tile gets the whole chain."""
    return wishes.mode or ("adaptive" if reader.is_slide else "")


def _plan(engine: Engine, reader: ImageReader, wishes: Wishes, follow: Follow = unfollowed) -> SlidePlan | None:
    mode = plans(reader, wishes)
    if not mode:
        return None
    restorer = engine.restorer
    grid = restorer.grid(reader)
    return engine.planner.plan(reader, grid, mode, restorer.estimator, restorer.device, follow(PLANNING))


def _plan_or_picture(engine: Engine, reader: ImageReader, wishes: Wishes, result: Path, follow: Follow
                     ) -> SlidePlan | None:  # fmt: skip
    try:
        return _plan(engine, reader, wishes, follow)
    except NoTissueError as error:
        from PIL import Image

        picture = file_beside(result, "no_tissue.png")
        small = reader.read_scaled(Box(0, 0, *reader.shape), max(1.0, max(reader.shape) / PICTURE_PX))
        with replace_when_done(picture, overwrite=True) as file:
            Image.fromarray(small).save(file, "PNG")
        raise NoTissueError(
            f"a slide must show tissue, none was found in {reader.path.name}: look at {picture}."
        ) from error


def _keep_tiles(engine: Engine, reader: ImageReader, sink: ImageSink, plan: SlidePlan | None
                ) -> Callable[[], str] | None:  # fmt: skip
    """Let the result take the source's JPEG tiles where nothing changes.

    Returns:
        What to say about it once the result is written; None where it is not asked for.
    """
    if sink.path.suffix.lower() == DICOM_FOLDER:
        return lambda: "all tiles encoded anew: a DICOM result takes none of the source's"
    if plan is None or not isinstance(sink, TiffSink) or sink.encoding.compression != "jpeg":
        return None
    untouched = engine.restorer.untouched(reader, plan)

    def keeps(box: Box) -> bool:
        if not untouched(box):
            return False
        if isinstance(reader, MarkingReader) and any(_touch(box, place) for place in reader.marked):
            reader.read(*box)
            return not reader.damaged(box)
        return True

    try:
        tiles = JpegTiles(reader, keeps, sink.encoding.quality)
    except CannotCopyError as error:
        reason = f"all tiles encoded anew: {error}"
        return lambda: reason
    sink.source_tiles = tiles
    return lambda: f"{tiles.copied} of {tiles.count} tiles kept as the source has them"


def _touch(one: Box, other: Box) -> bool:
    shared = one.overlap(other)
    return shared.height > 0 and shared.width > 0


def check_pixel_size(reader: ImageReader, mpp: float | None) -> None:
    """Refuse a slide whose pixel size nobody knows.

    Raises:
        ImageError: neither the slide nor the user says it.
    """
    if reader.is_slide and not (mpp or reader.mpp):
        raise ImageError(f"a slide must say its µm per pixel, {reader.path.name} does not: give --mpp.")


def check_trust(reader: ImageReader, wishes: Wishes) -> None:
    """Refuse to judge an image whose pixel size nobody knows: how far a distance blurs depends on it.

    Raises:
        ImageError: neither the image nor the user says it.
    """
    if wishes.judges and not (wishes.mpp or reader.mpp):
        raise ImageError(f"a trust map needs the µm per pixel, {reader.path.name} does not say it: give --mpp.")


def _settings(engine: Engine, reader: ImageReader, wishes: Wishes) -> dict[str, object]:
    """What decides the pixels beside source and networks; on a GPU a batch may change the last bit."""
    network, restorer = engine.restorer.tile_restorer, engine.restorer
    trust = {"samples": wishes.samples, "revert_untrusted": wishes.revert_untrusted or "no", "trust_limit": LIMIT}
    return (trust if wishes.judges else {}) | network.options | {
        "mode": plans(reader, wishes) or "every tile",
        "plane": wishes.plane,
        "mpp": wishes.mpp or reader.mpp,
        "tile_px": restorer.tile_px,
        "overlap_px": restorer.overlap_px,
        "binning": restorer.binning,
        "batch": "any" if restorer.device.type == "cpu" else restorer.batch,
        "device": restorer.device.type,
    }


def _gb(count: float) -> str:
    return f"{count / 1e9:.2g} GB" if count < 1e11 else f"{count / 1e9:.0f} GB"


