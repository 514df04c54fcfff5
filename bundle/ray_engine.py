"""Many slides at once by Ray: actors that hold one network each, a slide as the unit of work.

    driver --jobs--> actors --blocks--> NAME.partial beside each result --> result

An actor that is lost is started again and goes on with its slide at the ledger; a driver that is lost loses nothing
either: the same command goes on. Ray is optional (requirements-ray.txt) and sends no usage statistics from here.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bundle.messages import Tally
from bundle.slide_job import Engine, Recipe, restore_image
from bundle.slide_restoration import SlideReport
from bundle.slides.files import Job
from bundle.wishes import Wishes

CORES_EACH = 4  # of an actor without a GPU: beyond, two actors do more than one with twice the cores
_STORE_BYTES = 100 * 2**20
_RETRIES = 3  # of an actor, and of a slide whose actor was lost


class Outcome(NamedTuple):
    """What became of one slide."""

    job: Job
    report: SlideReport | None  # None where it failed
    complaints: list[str]  # as they stand on stderr, without their newlines


class SlideActor:
    """Restores one slide after the other with a network of its own."""

    engine: Engine | None = None

    def __init__(self, recipe: Recipe, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.recipe = recipe

    def restore(self, job: Job, wishes: Wishes) -> Outcome:
        """Restore a slide; what it says on stderr goes to the driver."""
        report, said, tally = None, io.StringIO(), Tally()
        with contextlib.redirect_stderr(said), tally.image(job.image):
            if self.engine is None:  # not when the actor is made: what is wrong with its files is then one sentence
                self.engine = self.recipe.engine()
            report = restore_image(self.engine, job, wishes)
        return Outcome(job, report, said.getvalue().splitlines())


def restore_all(recipe: Recipe, jobs: Sequence[Job], wishes: Wishes, workers: int | None = None) -> Iterator[Outcome]:
    """Restore slides on the cluster of RAY_ADDRESS, or on this machine where that is not set, each as it is finished.

    Args:
        recipe: of the engine that each actor builds.
        jobs: slides and results, on paths that every machine of the cluster sees.
        wishes: what the user asked for.
        workers: actors; None takes one a GPU, or one for every `CORES_EACH` cores.

    Raises:
        ValueError: Ray is not installed, or the cluster has no GPU for a network that wants one.
    """
    try:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray
    except ImportError as error:
        raise ValueError("--engine ray needs Ray: pip install -r requirements-ray.txt.") from error
    # A cluster that is there has its own store; ours takes little, because nothing large travels.
    started = {} if os.environ.get("RAY_ADDRESS") else {"object_store_memory": _STORE_BYTES, "include_dashboard": False}
    ray.init(log_to_driver=False, configure_logging=False, **started)
    try:
        count, resources = _shares(ray.cluster_resources(), recipe.device, workers, len(jobs))
        actor_class = ray.remote(max_restarts=_RETRIES, max_task_retries=_RETRIES, **resources)(SlideActor)
        threads = int(resources["num_cpus"])
        yield from _finished(ray, [actor_class.remote(recipe, threads) for _ in range(count)], list(jobs), wishes)
    finally:
        ray.shutdown()


def _shares(cluster: dict[str, float], device: str, workers: int | None, jobs: int) -> tuple[int, dict[str, float]]:
    """How many actors, and what each of them takes of the cluster."""
    cores, gpus = int(cluster.get("CPU", 1)), int(cluster.get("GPU", 0))
    if device == "cuda" and not gpus:
        raise ValueError("device cuda needs a GPU in Ray's cluster, it has none: use cpu.")
    wanted = workers or (gpus if device == "cuda" else max(1, cores // CORES_EACH))
    # Actors that the cluster cannot hold would be waited for without end.
    count = max(1, min(wanted, jobs, gpus if device == "cuda" else cores))
    share = cores // count if workers else min(CORES_EACH, cores // count)
    each: dict[str, float] = {"num_cpus": max(1, share)}
    if device == "cuda":
        each["num_gpus"] = 1
    return count, each


def _finished(ray: Any, actors: list[Any], jobs: list[Job], wishes: Wishes) -> Iterator[Outcome]:
    """Give every actor a slide, and the next one when it is done; the slides of a lost actor fail with a sentence."""
    running: dict[Any, tuple[Any, Job]] = {}
    while jobs or running:
        while jobs and actors:
            actor, job = actors.pop(), jobs.pop(0)
            running[actor.restore.remote(job, wishes)] = (actor, job)
        if not running:
            lost = "every worker was lost: look for what ends them (memory, a node), then give the same command again."
            yield from (Outcome(job, None, [f"mop: {job.image}: {lost}"]) for job in jobs)
            return
        done, _ = ray.wait(list(running))
        actor, job = running.pop(done[0])
        try:
            outcome: Outcome = ray.get(done[0])
        except ray.exceptions.RayActorError:
            told = f"mop: {job.image}: its worker was lost {_RETRIES + 1} times, finished blocks are kept."
            yield Outcome(job, None, [told])
            continue
        actors.append(actor)
        yield outcome
