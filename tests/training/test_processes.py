"""The stages as their configs run them, in real processes: killed and started again, and two in step."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events

ROOT = Path(__file__).resolve().parent.parent.parent
# A process that has imported everything once and forks: a start costs tenths of a second instead of ten.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch._dynamo", "monai.bundle", "monai.engines", "bundle.training.batches",
                              "bundle.training.checkpoints", "bundle.p_diffusion.denoiser", "bundle.data.stain"])
SMALL = {"patch_px": 32, "p_former_refinement": 0}


def train(stage: str, overlays: list[str], options: dict[str, Any], environment: dict[str, str]) -> None:
    """What `python -m monai.bundle run training` does, with the loss curve in `<runs_dir>/curve.json` at the end."""
    from monai.bundle import ConfigWorkflow

    os.environ.update(environment)
    torch.set_num_threads(1)
    files = [f"configs/{name}.json" for name in (f"train_{stage}", "smoke", *overlays)]
    workflow = ConfigWorkflow(config_file=files, workflow_type="train", logging_file=False, **options)
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train::trainer")
    validator = workflow.parser.get_parsed_content("validate::evaluator")
    curve: list[list[float]] = []

    def note(engine: Engine) -> None:
        curve.append([engine.state.metrics["mean_loss"], *map(float, validator.state.metrics.values())])

    trainer.add_event_handler(Events.EPOCH_COMPLETED, note)
    workflow.run()
    if os.environ.get("RANK", "0") == "0":
        (Path(options["runs_dir"]) / "curve.json").write_text(json.dumps(curve))
    workflow.finalize()


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., BaseProcess]:
    """Starts a stage's training on one small set of synthetic fields."""
    from bundle.data.phantom import write_phantom_fields

    monkeypatch.chdir(ROOT)
    fields = write_phantom_fields(tmp_path / "fields", train=2, val=1, test=0, size_px=160)

    def started(stage: str, runs: str, overlays: tuple[str, ...] = (), environment: dict[str, str] | None = None,
                **options: Any) -> BaseProcess:
        options |= {"dataset_dir": fields, "runs_dir": str(tmp_path / runs), "device": "$torch.device('cpu')"}
        process = FORKS.Process(target=train, args=(stage, list(overlays), options, environment or {}))
        process.start()
        return process

    return started


def ended(process: BaseProcess) -> int | None:
    process.join(120)
    return process.exitcode


@pytest.mark.slow
def test_a_training_killed_at_any_moment_ends_with_the_weights_of_an_unbroken_one(
        start: Callable[..., BaseProcess], tmp_path: Path) -> None:
    """kill -9, also in the middle of writing a checkpoint, must cost time and nothing else; P-diffusion has it all."""
    options = {**SMALL, "p_diffusion_epochs": 5, "val_patches": 2}
    assert ended(start("p_diffusion", "whole", **options)) == 0
    folder = tmp_path / "broken" / "p_diffusion"
    moments = [folder / "network.pt.tmp", folder / "checkpoint.pt.tmp", folder / "checkpoint.pt"]
    killed = 0
    for moment in [*moments, None]:  # the last start is left alone
        process = start("p_diffusion", "broken", **options)
        before = moment.stat().st_mtime_ns if moment is not None and moment.exists() else 0
        while process.is_alive() and moment is not None:
            time.sleep(0.0005)
            if moment.exists() and moment.stat().st_mtime_ns != before:
                os.kill(process.pid or 0, signal.SIGKILL)
                process.join()
        killed += ended(process) == -signal.SIGKILL
    assert killed == len(moments)
    for name in ("network.pt", "best.pt", "checkpoint.pt"):
        whole, broken = (torch.load(tmp_path / runs / "p_diffusion" / name, weights_only=True)
                         for runs in ("whole", "broken"))
        torch.testing.assert_close(broken, whole, rtol=0, atol=0)


def network_of_two() -> list[dict[str, str]]:
    """The environment that torchrun gives each of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    return [{**address, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]


@pytest.mark.slow
def test_two_processes_train_as_one_does_with_the_same_batch(
        start: Callable[..., BaseProcess], tmp_path: Path) -> None:
    """A second GPU must make a training shorter, not different; P-diffusion has averaged weights and frozen prompts."""
    options = {**SMALL, "p_diffusion_batch_size": 4, "val_patches": 5, "mixed_precision": False}
    one = start("p_diffusion", "one", **options)
    killed = [start("p_diffusion", "two", ("multi_gpu",), place, **options) for place in network_of_two()]
    while not (tmp_path / "two" / "p_diffusion" / "checkpoint.pt").exists() and killed[0].is_alive():
        time.sleep(0.01)
    for process in killed:
        process.kill()
        process.join()
    two = [start("p_diffusion", "two", ("multi_gpu",), place, **options) for place in network_of_two()]
    assert [ended(process) for process in (one, *two)] == [0] * 3
    expected, got = (json.loads((tmp_path / runs / "curve.json").read_text()) for runs in ("one", "two"))
    assert len(expected) == 2 and len(got) == 1  # the first epoch was not trained again
    assert got[0][0] == pytest.approx(expected[1][0], abs=1e-5)  # loss
    assert got[0][1] == pytest.approx(expected[1][1], abs=1e-4)  # validation, dB
    for name in ("network.pt", "best.pt"):
        weights, shared = (torch.load(tmp_path / runs / "p_diffusion" / name, weights_only=True)
                           for runs in ("one", "two"))
        torch.testing.assert_close(shared, weights, rtol=0, atol=1e-5)


def stop(environment: dict[str, str], folder: str) -> None:
    """One of two processes whose losses are checked; the second's is no number."""
    from bundle.training.handlers import StopOnNaN

    os.environ.update(environment)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    engine = Engine(lambda engine, batch: None)
    engine.state.output = {"loss": torch.tensor(float("nan") if rank else 1.0)}
    engine.state.batch = {"seed": torch.tensor([rank]), "file": [f"field_{rank}.png"]}
    try:
        StopOnNaN().check(engine)
    except ArithmeticError as error:
        (Path(folder) / str(rank)).write_text(str(error))


def test_processes_stop_together_and_name_the_batch_of_the_one_that_failed(tmp_path: Path) -> None:
    """One that stopped alone would leave the others waiting for its gradients until somebody looks."""
    processes = [FORKS.Process(target=stop, args=(place, str(tmp_path))) for place in network_of_two()]
    for process in processes:
        process.start()
    assert [ended(process) for process in processes] == [0, 0]
    told = {(tmp_path / rank).read_text() for rank in ("0", "1")}
    assert len(told) == 1 and "it became nan on field_1.png (seed 1); training stops." in told.pop()
