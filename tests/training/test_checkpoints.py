"""Runs that are killed go on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from ignite.handlers import EMAHandler
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from torch import nn
from torch.utils.data import DataLoader, Dataset

from bundle.training.checkpoints import StageCheckpoint
from bundle.training.handlers import DrawEpoch, StopOnNaN
from bundle.weights import load_weights, save_whole


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
        return {"image": image, "label": image.flip(0), "seed": index}


def trainer(folder: Path, epochs: int) -> tuple[SupervisedTrainer, nn.Module]:
    torch.manual_seed(0)
    network, data = nn.Linear(3, 3), Numbers()
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
    with pytest.raises(ArithmeticError, match=r"epoch 1, iteration 1, on the patches with seeds \[0, 1\]"):
        run.run()


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
