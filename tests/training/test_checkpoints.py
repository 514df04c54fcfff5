"""Runs that are killed go on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from ignite.engine.events import State
from ignite.handlers import EMAHandler
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset

from bundle.training.checkpoints import BestWeights, StageCheckpoint
from bundle.training.handlers import DrawEpoch, StopOnNaN
from bundle.weights import load_weights, save_whole, start_from


class Numbers(Dataset):
    """Samples that depend on the epoch, as patches do."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, object]:
        generator = torch.Generator().manual_seed(1000 * self.epoch + index)
        image = torch.randn(3, generator=generator)
        return {"image": image, "label": image.flip(0), "seed": index, "file": f"field_{index}.png"}


class DroppingLinear(nn.Linear):
    """Draws from torch's global generator, as the estimator's reader does."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(super().forward(image), 0.3, self.training)


def trainer(folder: Path, epochs: int) -> tuple[SupervisedTrainer, nn.Module]:
    torch.manual_seed(0)
    network, data = DroppingLinear(3, 3), Numbers()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.8)
    ema = EMAHandler(network, momentum=0.2)
    handlers = [DrawEpoch(data), StopOnNaN(), ema, LrScheduleHandler(schedule, print_lr=False),
                StageCheckpoint(folder, network, optimizer, schedule, ema)]
    return SupervisedTrainer(torch.device("cpu"), epochs, DataLoader(data, batch_size=2), network, optimizer,
                             nn.MSELoss(), train_handlers=handlers, decollate=False), network


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "network.pt", weights_only=True)


@pytest.mark.parametrize("iteration", [4, 7, 11])
def test_a_run_killed_in_an_epoch_ends_with_the_weights_of_an_unbroken_run(tmp_path: Path, iteration: int) -> None:
    """Otherwise a power cut changes the model, and nobody can repeat it."""
    whole, expected = trainer(tmp_path / "whole", 4)
    whole.run()
    broken, _ = trainer(tmp_path / "broken", 4)

    def kill() -> None:
        raise KeyboardInterrupt

    broken.add_event_handler(Events.ITERATION_COMPLETED(once=iteration), kill)
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    resumed, network = trainer(tmp_path / "broken", 4)
    resumed.run()
    assert resumed.state.epoch == 4
    for key, value in expected.state_dict().items():
        assert torch.equal(value, network.state_dict()[key])
    for key, value in weights_of(tmp_path / "whole").items():
        assert torch.equal(value, weights_of(tmp_path / "broken")[key])


def test_the_released_weights_are_the_averaged_ones(tmp_path: Path) -> None:
    """P-diffusion is sampled with averaged weights; the last step's are noisier."""
    run, network = trainer(tmp_path, 2)
    run.run()
    assert not torch.equal(weights_of(tmp_path)["weight"], network.state_dict()["weight"])


def test_a_finished_stage_is_not_trained_again(tmp_path: Path) -> None:
    """Running the same command twice must not cost a night."""
    trainer(tmp_path, 2)[0].run()
    again, _ = trainer(tmp_path, 2)
    steps: list[int] = []
    again.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: steps.append(engine.state.iteration))
    again.run()
    assert not steps


def test_a_checkpoint_of_another_stage_is_refused(tmp_path: Path) -> None:
    """Two stages in one folder would overwrite each other's night."""
    save_whole({"network": nn.Linear(2, 2).state_dict()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint .* is of another stage"):
        trainer(tmp_path, 2)[0].run()


def test_a_loss_that_is_no_number_stops_and_names_the_batch(tmp_path: Path) -> None:
    """One NaN step destroys the weights; the seeds say which patches to look at."""
    run, network = trainer(tmp_path, 2)
    nn.init.constant_(network.weight, float("nan"))
    told = r"epoch 1, iteration 1 it became nan on field_0.png \(seed 0\), field_1.png \(seed 1\); training stops"
    with pytest.raises(ArithmeticError, match=told):
        run.run()


def test_a_checkpoint_wins_over_the_weights_to_start_from(tmp_path: Path) -> None:
    """The command of a fine-tuning names its start; started again, it must go on and not begin anew."""
    whole, expected = trainer(tmp_path, 4)
    whole.run()
    trainer(tmp_path / "broken", 2)[0].run()
    resumed, network = trainer(tmp_path / "broken", 4)
    save_whole({"weight": torch.full((3, 3), 7.0), "bias": torch.ones(3)}, tmp_path / "start.pt")
    start_from(network, tmp_path / "start.pt")
    resumed.run()
    assert torch.equal(network.weight, expected.weight)


class Metric:
    """A validator that found `value`."""

    def __init__(self, value: float) -> None:
        self.state = State(metrics={"val_mae": value}, key_metric_name="val_mae")


def test_the_best_weights_stay_the_best_over_a_restart(tmp_path: Path) -> None:
    """A restart that forgot the record would call its first, worse network the best."""
    network = nn.Linear(1, 1)
    best = BestWeights(tmp_path, network, lower_is_better=True)
    for bias, error in ((1.0, 0.5), (2.0, 0.2), (3.0, 0.3), (4.0, float("nan"))):
        nn.init.constant_(network.bias, bias)
        best.compare(Metric(error))
    assert torch.load(tmp_path / "best.pt", weights_only=True)["bias"] == 2
    run, trained = trainer(tmp_path, 1)
    record = BestWeights(tmp_path, trained)
    checkpoint = StageCheckpoint(tmp_path, trained, run.optimizer, StepLR(run.optimizer, 1), best=record)
    record.best = 0.7
    run.state.epoch = 1
    checkpoint.save(run)
    record.best = -1
    checkpoint.load(run)
    assert record.best == 0.7


@pytest.mark.parametrize("content", ["text", "list", "other", "missing", "cut"])
def test_weights_that_do_not_fit_are_refused_in_one_sentence(tmp_path: Path, content: str) -> None:
    """Wrong weights restore garbage that looks like tissue."""
    path = tmp_path / "network.pt"
    if content == "text":
        path.write_text("no weights")
    if content == "list":
        torch.save([1, 2], path)
    if content == "other":
        torch.save(nn.Linear(3, 4).state_dict(), path)
    if content == "cut":
        torch.save(nn.Linear(300, 300).state_dict(), path)
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises((ValueError, FileNotFoundError), match="weights") as caught:
        load_weights(nn.Linear(3, 3), path)
    assert "\n" not in str(caught.value)


def test_a_part_of_a_chain_loads_by_its_prefix(tmp_path: Path) -> None:
    """The compact overlay takes the encoder out of the shipped chain."""
    chain = nn.ModuleDict({"encoder": nn.Linear(3, 3), "other": nn.Linear(2, 2)})
    torch.save(chain.state_dict(), tmp_path / "model.pt")
    loaded = load_weights(nn.Linear(3, 3), tmp_path / "model.pt", prefix="encoder.")
    assert torch.equal(loaded.weight, chain["encoder"].weight)


def test_a_network_starts_from_its_part_of_a_chain_from_its_own_file_or_from_nothing(tmp_path: Path) -> None:
    """A laboratory has either our release or its own stages, and the same option takes both."""
    chain = nn.ModuleDict({"denoiser": nn.Linear(3, 3), "p_former": nn.Linear(2, 2)})
    torch.save(chain.half().state_dict(), tmp_path / "model.pt")
    torch.save(chain["denoiser"].state_dict(), tmp_path / "network.pt")
    for name in ("model.pt", "network.pt"):
        started = start_from(nn.Linear(3, 3), tmp_path / name, "denoiser.")
        assert torch.equal(started.weight, chain["denoiser"].weight.float()) and started.weight.dtype == torch.float32
    fresh = nn.Linear(3, 3)
    before = fresh.weight.clone()
    assert torch.equal(start_from(fresh, None, "denoiser.").weight, before)


def test_weights_of_another_stage_are_no_start(tmp_path: Path) -> None:
    """A stage that started from another's weights would train for days from nothing that fits."""
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "network.pt")
    with pytest.raises(ValueError, match=r"must fit Linear entry by entry, .*network.pt has 2 of another size"):
        start_from(nn.Linear(3, 3), tmp_path / "network.pt", "denoiser.")
    with pytest.raises(FileNotFoundError, match=r"weights file must exist, .*absent.pt does not"):
        start_from(nn.Linear(3, 3), tmp_path / "absent.pt", "denoiser.")
