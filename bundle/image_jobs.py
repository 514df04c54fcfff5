"""The jobs of a command: images that open and pass its check; what is wrong with the others is said at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bundle.arguments import UsageError
from bundle.messages import Tally, say

if TYPE_CHECKING:
    from bundle.slides.files import Job
    from bundle.slides.reader import ImageReader


def readable_jobs(
    images: tuple[str, ...], output: str, results_of: Callable[[Path], list[Path]], overwrite: bool, tally: Tally,
    plane: int | None = None, check: Callable[[ImageReader], None] = lambda reader: None, skip_existing: bool = False,
) -> list[Job]:
    """Jobs of the images that open and pass.

    Args:
        images: files and folders of images.
        output: where results go; empty is refused.
        results_of: the files that an image becomes.
        overwrite: results may be there already.
        tally: told of every image that fails, before any network is loaded.
        plane: of a z-stack.
        check: raises ValueError for an image that the command cannot take.
        skip_existing: images whose result is there are said and left.

    Raises:
        UsageError: there is no image, or no output.
    """
    from bundle.slides.files import plan_jobs
    from bundle.slides.reader import open_image

    if not images or not output:
        raise UsageError(f"{'IMAGE' if not images else '--output DIR'} is needed, none was given.")
    planned = plan_jobs(images, results_of, overwrite, skip_existing)
    for problem in planned.problems:
        tally.fail(problem)
    for job in planned.finished:
        say(f"{job.image.name}: {job.results[0]} is there, left as it is")
    readable = []
    for job in planned.allowed:
        with tally.image(job.image), open_image(job.image, plane) as reader:
            check(reader)
            readable.append(job)
    return readable
