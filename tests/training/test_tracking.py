"""MLflow tells every training from every other, whatever became of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.metrics import MeanAbsoluteError
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import StatsHandler, ValidationHandler
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from bundle.training.checkpoints import BestWeights, StageCheckpoint
from bundle.training.experiments import show_command, store_of
from bundle.training.handlers import MeanLoss, pairs
from bundle.training.tracking import TrackRun, hyper_parameters, samples, scalars

CPU = torch.device("cpu")
CONFIG = {"_desc_": "not logged", "epochs": 2, "widths": [1, 2], "device": "$torch.device('cpu')", "rank": 0,
          "train": {"lr_scheduler": {"_target_": "StepLR", "optimizer": "@optimizer", "gamma": 0.5},
                    "handlers": [{"_target_": "Clip", "max_norm": 3}]}, "_meta_": {"version": "1"}}


class Images(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.full((3, 5, 7), index / 4)
        return {"image": image, "label": 1 - image, "seed": index}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One data base for all tests: to make it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def train(tmp_path: Path, store: str) -> Callable[..., Any]:
    """Trains the stage of a folder and gives its run and what MLflow knows."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store)

    def trained(epochs: int = 2, stage: str = "stage", fails: bool = False, **numbers: Any) -> Any:
        (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **numbers}))
        torch.manual_seed(0)
        folder, network = tmp_path / stage, nn.Conv2d(3, 3, 1)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
        schedule = StepLR(optimizer, 1, 0.5)
        best = BestWeights(folder, network, lower_is_better=True)
        validator = SupervisedEvaluator(CPU, DataLoader(Images(), batch_size=4), network, val_handlers=[best],
                                        key_val_metric={"val_mae": MeanAbsoluteError(pairs)}, decollate=False)
        handlers = [ValidationHandler(1, validator, epoch_level=True), MeanLoss(), StatsHandler(iteration_log=False),
                    StageCheckpoint(folder, network, optimizer, schedule, best=best),
                    TrackRun(folder, store, tmp_path / "config.json", validator)]

        def loss(prediction: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            if fails:
                raise ArithmeticError("stop")
            return (prediction - label).square().mean()

        trainer = SupervisedTrainer(CPU, epochs, DataLoader(Images(), batch_size=2), network, optimizer, loss,
                                    train_handlers=handlers)
        try:
            trainer.run()
        except ArithmeticError:
            assert fails
        return client.get_run(json.loads((folder / "tracking.json").read_text())["run_id"]), client

    return trained


def runs_of(client: Any, stage: str) -> list[Any]:
    return client.search_runs([client.get_experiment_by_name(stage).experiment_id])


def test_a_training_leaves_all_that_is_needed_to_repeat_and_to_judge_it(train: Callable[..., Any]) -> None:
    """A figure without its numbers, weights, pictures and commit cannot be trusted a year later."""
    run, client = train(stage="whole")
    assert run.info.status == "FINISHED" and run.info.run_name
    assert run.data.params == {"epochs": "2", "widths": "[1, 2]", "device": "$torch.device('cpu')",
                               "train.lr_scheduler._target_": "StepLR", "train.lr_scheduler.gamma": "0.5",
                               "train.handlers.0._target_": "Clip", "train.handlers.0.max_norm": "3"}
    assert {"mean_loss", "learning_rate", "val_mae", "epoch_seconds"} <= set(run.data.metrics)
    rates = client.get_metric_history(run.info.run_id, "learning_rate")
    assert [(rate.step, rate.value) for rate in rates] == [(1, 0.1), (2, 0.1)]  # nothing here steps the schedule
    assert len(run.data.tags.get("mlflow.source.git.commit", "0" * 40)) == 40
    files = {item.path for folder in ("weights", "samples", "config")
             for item in client.list_artifacts(run.info.run_id, folder)}
    assert files == {"weights/network.pt", "weights/best.pt", "samples/epoch_00001.png", "samples/epoch_00002.png",
                     "config/config.json"}


def test_a_finished_training_that_is_started_again_opens_no_run(train: Callable[..., Any]) -> None:
    """A list full of empty runs hides the real ones."""
    first, _ = train(stage="twice")
    second, client = train(stage="twice")
    assert first.info.run_id == second.info.run_id and len(runs_of(client, "twice")) == 1


def test_a_failed_run_is_closed_and_never_adopted(train: Callable[..., Any]) -> None:
    """Two trainings in one curve: the second half of a crashed run would be believed to be its own."""
    train(epochs=1, stage="failed")
    failed, _ = train(epochs=3, stage="failed", fails=True)
    assert failed.info.status == "FAILED"
    again, client = train(epochs=3, stage="failed")
    assert again.info.run_id != failed.info.run_id and again.info.status == "FINISHED"
    assert len(runs_of(client, "failed")) == 3


@pytest.mark.parametrize(("epochs", "numbers", "adopted"), [(1, {}, True), (1, {"seed": 9}, False), (0, {}, False)])
def test_a_killed_run_goes_on_only_as_the_training_that_it_was(
        train: Callable[..., Any], tmp_path: Path, epochs: int, numbers: dict[str, Any], adopted: bool) -> None:
    """After a power cut the curve must go on; with other numbers, or from the beginning, it is another training."""
    stage = f"killed_{epochs}_{len(numbers)}"
    killed, client = train(epochs=1, stage=stage)
    client.update_run(killed.info.run_id, status="RUNNING")  # what kill -9 leaves
    if not epochs:
        (tmp_path / stage / "checkpoint.pt").unlink()
    run, _ = train(epochs=3, stage=stage, **numbers)
    assert run.info.status == "FINISHED"
    assert (run.info.run_id == killed.info.run_id) == adopted
    if adopted:
        steps = [value.step for value in client.get_metric_history(run.info.run_id, "mean_loss")]
        assert steps == [1, 2, 3]
    else:
        assert client.get_run(killed.info.run_id).info.status == "KILLED"
        assert run.data.tags.get("mop.continues_run") == (killed.info.run_id if epochs else None)


def test_a_picture_shows_input_restoration_and_truth_of_each_patch() -> None:
    """Columns in another order would praise the blurred image."""
    output = {"image": torch.zeros(2, 3, 4, 6), "pred": torch.full((2, 3, 4, 6), 0.5), "label": torch.ones(2, 3, 4, 6)}
    output["image"][1] = 0.2
    picture = samples(output)
    assert picture is not None and picture.shape == (8, 18, 3)
    assert np.unique(picture[:4, :6]) == 0 and np.unique(picture[4:, :6]) == 51
    assert np.unique(picture[:, 6:12]) == 128 and np.unique(picture[:, 12:]) == 255
    assert samples({**output, "pred": torch.zeros(2, 9)}) is None  # tokens


def test_what_is_no_number_is_no_metric_and_references_are_no_numbers() -> None:
    """MLflow refuses a tensor in the middle of the night."""
    assert scalars({"a": torch.tensor(2.0), "b": 1, "c": torch.zeros(3), "d": "x"}) == {"a": 2.0, "b": 1.0}
    assert dict(hyper_parameters({"a": {"b": "@c", "d": "$e", "f": None}})) == {"a.f": "None"}


def test_the_pages_are_served_to_this_machine_alone(tmp_path: Path) -> None:
    """Names of slides and patients may stand in a run."""
    with pytest.raises(FileNotFoundError, match=r"must hold mlflow\.db"):
        store_of(tmp_path)
    (tmp_path / "mlflow.db").touch()
    command = show_command(store_of(tmp_path), 5001)
    assert command[command.index("--host") + 1] == "127.0.0.1" and command[command.index("--port") + 1] == "5001"
    assert command[command.index("--backend-store-uri") + 1].endswith("/mlflow.db")
