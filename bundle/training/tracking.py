"""MLflow runs of the trainers: one experiment a stage, one run a training, whatever happens to the process.

Everything is logged by the run's own id: with MLflow's global "active run", a new training would write into a crashed
one.
"""

from __future__ import annotations

import json
import logging
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor

from bundle import __version__
from bundle.conventions import to_uint8
from bundle.training.checkpoints import BEST, WEIGHTS
from bundle.training.experiments import refuse_telemetry

NOTE = "tracking.json"  # in the stage's folder: which run it writes
BATCH = 100  # parameters that MLflow takes at once
SAMPLES = 4  # patches in a picture of restorations
NOT_HYPER = {"_meta_", "_desc_", "imports", "initialize", "finalize", "training", "run", "rank", "output_dir",
             "save_execute_config", "tracking_uri", "run_name"}
ROOT = Path(__file__).resolve().parent.parent.parent
logger = logging.getLogger(__name__)


class TrackRun:
    """Logs hyper-parameters, losses, rates, validation metrics, pictures of restorations, weights and the commit.

    A training that was killed goes on in its own run, if it goes on from a checkpoint with the same hyper-parameters
    and the run was not closed meanwhile; any other start is a new run. A run is closed as FINISHED, FAILED or KILLED.

    Args:
        folder: of the stage, where its checkpoints lie; its name is the experiment's.
        uri: of MLflow's store: sqlite:///file or http://server.
        config: the merged config, a JSON file.
        validator: of the trainer.
        run_name: None takes the time of the start.
    """

    def __init__(self, folder: str | Path, uri: str, config: str | Path, validator: Engine,
                 run_name: str | None = None) -> None:
        self.folder, self.uri, self.config, self.validator = Path(folder), uri, Path(config), validator
        self.run_name = run_name or time.strftime("%Y-%m-%d %H:%M:%S")
        self.run_id, self.rate, self.begun = "", 0.0, 0.0
        self.client: Any = None

    def attach(self, engine: Engine) -> None:
        """From the start to the end of `engine`, a trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_STARTED, self.begin_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.end_epoch)
        engine.add_event_handler(Events.COMPLETED, self.finish)
        self.validator.add_event_handler(Events.COMPLETED, lambda: self.validated(engine.state.epoch))
        run = engine.run

        def tracked_run(*args: Any, **kwargs: Any) -> Any:
            try:
                return run(*args, **kwargs)
            except BaseException as error:
                self.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
                raise

        # Not by EXCEPTION_RAISED: MONAI's StatsHandler raises again there, and later handlers never hear of it.
        engine.run = tracked_run

    def start(self, engine: Engine) -> None:
        """Go on with the stage's run or open a new one; nothing if there is nothing left to train."""
        if engine.state.epoch >= engine.state.max_epochs:
            return
        refuse_telemetry()
        from mlflow.telemetry import set_telemetry_client
        from mlflow.tracking import MlflowClient

        set_telemetry_client()  # reads the refusal: MONAI imported MLflow before it

        self.client = MlflowClient(tracking_uri=self.uri)
        config = json.loads(self.config.read_text())
        numbers = dict(hyper_parameters(config))
        old = self._own_run()
        if old is not None and engine.state.epoch > 0 and old.data.params == numbers:
            self.run_id = old.info.run_id
            return
        if old is not None:
            self.client.set_terminated(old.info.run_id, "KILLED")
        self._open(numbers, None if old is None or engine.state.epoch == 0 else old.info.run_id)

    def begin_epoch(self, engine: Engine) -> None:
        """Remember the rate that the epoch starts with."""
        self.rate, self.begun = float(engine.optimizer.param_groups[0]["lr"]), time.monotonic()

    def end_epoch(self, engine: Engine) -> None:
        """Log the epoch's mean loss, learning rate and duration."""
        seconds = time.monotonic() - self.begun
        self._log({**scalars(engine.state.metrics), "learning_rate": self.rate, "epoch_seconds": seconds},
                  engine.state.epoch)

    def validated(self, epoch: int) -> None:
        """Log the validation's metrics and, of image stages, a picture."""
        self._log(scalars(self.validator.state.metrics), epoch)
        picture = samples(self.validator.state.output)
        if picture is not None:
            file = f"samples/epoch_{epoch:05}.png"
            self._try(lambda: self.client.log_image(self.run_id, picture, artifact_file=file))

    def finish(self, engine: Engine) -> None:
        """Log the weights and close the run."""
        for name in (WEIGHTS, BEST):
            if self.run_id and (self.folder / name).is_file():
                self._try(partial(self.client.log_artifact, self.run_id, str(self.folder / name), "weights"))
        self.close("FINISHED")

    def close(self, status: str) -> None:
        """End the run, if there is one."""
        self._try(lambda: self.client.set_terminated(self.run_id, status))
        self.run_id = ""

    def _own_run(self) -> Any:
        """The run of the stage's folder, if it is in this store and still open."""
        from mlflow.exceptions import MlflowException

        note = self.folder / NOTE
        known = json.loads(note.read_text()) if note.is_file() else {}
        if known.get("uri") != self.uri:
            return None
        try:
            run = self.client.get_run(known["run_id"])
        except MlflowException:
            return None
        return run if run.info.status == "RUNNING" and run.info.lifecycle_stage == "active" else None

    def _open(self, numbers: dict[str, str], continues: str | None) -> None:
        experiment = self.client.get_experiment_by_name(self.folder.name)
        if experiment is None:
            # Without a server MLflow would put artifacts into the current directory.
            local = (self.folder.parent / "mlflow_artifacts").resolve().as_uri()
            at = None if self.uri.startswith("http") else f"{local}/{self.folder.name}"
            experiment_id = self.client.create_experiment(self.folder.name, artifact_location=at)
        else:
            experiment_id = experiment.experiment_id
        tags = {**commit_tags(), **({"mop.continues_run": continues} if continues else {})}
        self.run_id = self.client.create_run(experiment_id, run_name=self.run_name, tags=tags).info.run_id
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f"{NOTE}.tmp"
        temporary.write_text(json.dumps({"uri": self.uri, "run_id": self.run_id}) + "\n")
        temporary.replace(self.folder / NOTE)
        from mlflow.entities import Param

        params = [Param(name, value) for name, value in numbers.items()]
        for first in range(0, len(params), BATCH):
            self.client.log_batch(self.run_id, params=params[first:first + BATCH])
        self.client.log_artifact(self.run_id, str(self.config), "config")

    def _log(self, metrics: dict[str, float], epoch: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        values = [Metric(name, value, now, epoch) for name, value in metrics.items()]
        self._try(lambda: self.client.log_batch(self.run_id, metrics=values))

    def _try(self, log: Callable[[], Any]) -> None:
        """Log, if there is a run; a store that went away must not end the training."""
        if not self.run_id:
            return
        from mlflow.exceptions import MlflowException

        try:
            log()
        except MlflowException as error:
            logger.warning("MLflow at %s did not take a value: %s", self.uri, error)


def hyper_parameters(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every number, switch, list and name of a merged config that is no reference, as (path, text)."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        if not prefix and key in NOT_HYPER:
            continue
        if isinstance(value, dict):
            yield from hyper_parameters(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            parts = {str(place): item for place, item in enumerate(value)}
            yield from hyper_parameters(parts, f"{name}.")
        elif not (prefix and isinstance(value, str) and value.startswith(("@", "$", "%"))):
            yield name, str(value)


def scalars(metrics: dict[str, Any]) -> dict[str, float]:
    """The metrics that are one number."""
    return {name: float(value) for name, value in metrics.items()
            if isinstance(value, float | int | np.number) or (isinstance(value, Tensor) and value.numel() == 1)}


def samples(output: Any) -> np.ndarray | None:
    """Input, restoration and truth side by side, a patch a row, (rows, 3 W, 3) uint8; None of what is no image."""
    images = [output[key] for key in ("image", "pred", "label") if isinstance(output[key], Tensor)]
    if [image.shape[1:2] for image in images if image.ndim == 4] != [(3,)] * 3:
        return None
    rows = torch.cat([to_uint8(image[:SAMPLES].detach().float().cpu()) for image in images], dim=3)
    return torch.cat(list(rows), dim=1).permute(1, 2, 0).numpy()  # (B, 3, H, 3 W) -> (B H, 3 W, 3)


def commit_tags() -> dict[str, str]:
    """MLflow's own tag of the commit that ran, with the version and whether files were changed."""
    tags = {"mop.version": __version__}
    for tag, command in (("mlflow.source.git.commit", ["rev-parse", "HEAD"]),
                         ("mop.uncommitted_changes", ["status", "--porcelain", "--untracked-files=no"])):
        try:
            told = subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return tags  # installed, not cloned
        tags[tag] = told.stdout.strip() if tag.startswith("mlflow") else str(bool(told.stdout.strip()))
    return tags
