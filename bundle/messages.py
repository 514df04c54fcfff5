"""What the command line says: results on stdout, one sentence per problem on stderr, progress on a terminal."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import math
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, ParamSpec

if TYPE_CHECKING:
    from bundle.progress import Follow, Progress
    from bundle.slide_plan import Kind
    from bundle.slide_restoration import SlideReport
    from bundle.slides.reader import ImageReader

Given = ParamSpec("Given")

TRAINED_MPP = (0.2, 0.6)  # µm per pixel: trained at 0.25 (40x) and 0.5 (20x)


_WANTS_MEMORY = re.compile("out of memory|allocate memory")


class Tally:
    """Counts what failed, and says so on stderr."""

    def __init__(self) -> None:
        self.failed = 0

    def fail(self, sentence: str) -> None:
        self.failed += 1
        complain(sentence)

    @contextlib.contextmanager
    def image(self, path: Path) -> Iterator[None]:
        """Turn what can be wrong with one image into one sentence; the next image still runs."""
        try:
            yield
        except (ValueError, OSError, MemoryError) as error:
            told = sentence(error)
            self.fail(told if path.name in told else f"{path}: {told}")
        except RuntimeError as error:
            if not _WANTS_MEMORY.search(str(error)):
                raise
            self.fail(f"{path}: memory is not enough for it: use a smaller --batch or --tile-px.")

    def finish(self) -> None:
        if self.failed:
            sys.exit(1)


def result_line(name: str, report: SlideReport, sparing: bool) -> str:
    """One line on a restored image; `sparing`: parts of it may have been left as they were."""
    skipped = f", {report.untouched:.0%} untouched" if sparing else ""
    size = f"{report.width} x {report.height} px, {report.seconds:.1f} s"
    seen = "" if math.isnan(report.mean_defocus_um) else f", mean |defocus| {report.mean_defocus_um:.2f} µm"
    as_of = "restored at several sizes of pixels as of a camera that oversamples (--binning 1: at one)"
    binned = f", {as_of}" if report.binning > 1 else ""
    return f"{name}: {size}{seen}{skipped}{binned}"


def plan_line(kinds: Mapping[Kind, int]) -> str:
    """Tiles of each kind."""
    return ", ".join(f"{count} {kind.name.lower().replace('_', ' ')}" for kind, count in kinds.items()) + " tiles"


@contextlib.contextmanager
def stop_after_block(keeps_work: bool) -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks to stop once the block under way is finished; the second one stops at once.

    Args:
        keeps_work: finished blocks survive; otherwise the first Ctrl-C stops at once.
    """
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked or not keeps_work:
            raise KeyboardInterrupt
        asked = True
        complain("stopping after this block, Ctrl-C again stops at once.")

    # A library's caller keeps its own handler, and only the main thread may set one.
    ours = keeps_work and threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, ask) if ours else None
    try:
        yield lambda: asked
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


def known_mpp(reader: ImageReader, given: float | None) -> float | None:
    """The pixel size to record; a warning where it is unknown or not what the network was trained for."""
    mpp = given or reader.mpp
    trained = "the network was trained at 0.25 and 0.5 µm/px"
    if mpp is None:
        complain(f"warning: {reader.path.name} does not say its µm per pixel and {trained}: check it and pass --mpp.")
    elif not TRAINED_MPP[0] <= mpp <= TRAINED_MPP[1]:
        complain(f"warning: {reader.path.name} has {mpp:.4g} µm/px, {trained}: resample it or distrust the result.")
    return mpp


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str], Follow]]:
    """A bar per image, which says what is under way and the time left of that, on a terminal; silence elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(20),  # all of a line fits into 80 columns
        MofNCompleteColumn(),
        TextColumn("{task.fields[phase]},"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def of_image(name: str) -> Follow:
            tasks: list[TaskID] = []

            def follow(phase: str) -> Progress:
                # A task for every phase: one that is begun again keeps its old total.
                for earlier in tasks:
                    bars.remove_task(earlier)
                task = bars.add_task(name.replace("[", r"\["), total=None, phase=phase)
                tasks[:] = [task]
                return lambda done, total: bars.update(task, completed=done, total=total)

            return follow

        yield of_image


def unwrapped(error: BaseException) -> BaseException:
    """What a part of a config said, without what MONAI's parser and transforms wrap around it."""
    while (isinstance(error, RuntimeError) and str(error).startswith(("Failed to ", "applying transform "))
           and error.__cause__ is not None):
        error = error.__cause__
    return error


def sentence(error: BaseException) -> str:
    """An error as one sentence on one line."""
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk is full{where}: make room and give the same command again, what is finished stays."
        return f"{error.strerror}{where}."
    told = str(error) or type(error).__name__
    if _WANTS_MEMORY.search(told):
        told = "memory is not enough: use smaller batches or patches"
    if told.startswith("Caught ") and "Original Traceback" in told:  # of a worker of torch's DataLoader
        told = told.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(told.split()).rstrip(".") + "."


def as_program(main: Callable[Given, None]) -> Callable[Given, int]:
    """Decorate the `main` of a script: it returns the exit status, and what its user can mend is one sentence.

    That is a ValueError, an OSError or want of memory, also where a config's parser has wrapped it. Any other error is
    ours to mend and keeps its stack.
    """
    name = Path(inspect.getfile(main)).name

    @functools.wraps(main)
    def program(*given: Given.args, **named: Given.kwargs) -> int:
        try:
            main(*given, **named)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            cause = unwrapped(error)
            if not (isinstance(cause, (ValueError, OSError, MemoryError)) or _WANTS_MEMORY.search(str(cause))):
                raise
            sys.stderr.write(f"{name}: {sentence(cause)}\n")
            return 1
        return 0

    return program


def _raised_here(error: BaseException) -> bool:
    """Whether a `raise` of this package made the error: it then says in words what is wrong."""
    frames = traceback.extract_tb(error.__traceback__)
    here = bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent)
    return here and (frames[-1].line or "").startswith("raise ")


def errors_as_sentences() -> None:
    """For configs: `python -m monai.bundle` then ends with what is wrong as one sentence, not with MONAI's stack.

    Errors that nothing here raised on purpose keep their stack, the sentence comes below. A program that runs the
    config inside keeps its own ways.
    """
    program = getattr(sys.modules["__main__"], "__spec__", None)
    if program is None or program.name != "monai.bundle.__main__":
        return

    def tell(kind: type[BaseException], error: BaseException, stack: TracebackType | None) -> None:
        cause = unwrapped(error)
        if not (isinstance(cause, OSError) or _raised_here(cause) or _WANTS_MEMORY.search(str(cause))):
            sys.__excepthook__(kind, error, stack)
        if isinstance(cause, Exception):  # Ctrl-C is none
            complain(sentence(cause))

    sys.excepthook = tell


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def complain(sentence: str) -> None:
    sys.stderr.write(f"mop: {sentence}\n")
