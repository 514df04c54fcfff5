"""The optimizer of the compact preset and the learning-rate schedules."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from bundle.training.muon import MuonWithAdam, mixes_channels, orthogonalized
from bundle.training.schedules import learning_rate_schedule


def network() -> nn.Sequential:
    """A kernel that mixes channels, a depth-wise one, and biases."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1, groups=5), nn.Conv2d(5, 3, 1))


def steps(optimizer: torch.optim.Optimizer, net: nn.Module, first: int, count: int) -> None:
    """Steps on inputs that belong to their number."""
    for number in range(first, first + count):
        x = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        (net(x) - x.flip(1)).abs().mean().backward()
        optimizer.step()


def test_kernels_that_mix_channels_move_by_torch_s_muon_and_all_else_by_torch_s_adam(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong sharing out trains biases by a rule made for matrices."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # torch's Muon without its rounding
    ours, theirs = network(), network()
    steps(MuonWithAdam(ours.parameters(), lr=0.01), ours, 0, 3)

    kernels = [theirs[0].weight, theirs[2].weight]
    matrices = [nn.Parameter(kernel.detach().flatten(1)) for kernel in kernels]
    muon = torch.optim.Muon(matrices, lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    others = [weight for weight in theirs.parameters() if not any(weight is kernel for kernel in kernels)]
    adam = torch.optim.Adam(others, lr=0.01)
    for number in range(3):
        x = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(number))
        theirs.zero_grad()
        (theirs(x) - x.flip(1)).abs().mean().backward()
        for kernel, matrix in zip(kernels, matrices, strict=True):
            matrix.grad = kernel.grad.flatten(1)
        muon.step()
        adam.step()

    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert [mixes_channels(weight) for weight in ours.parameters()] == [True, False, False, False, True, False]


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_newton_schulz_keeps_directions_and_evens_out_their_lengths(shape: tuple[int, int]) -> None:
    """Its polynomial acts on the singular values alone: the update's directions are the gradient's."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    coefficients = (3.4445, -4.7750, 2.0315)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = sum(factor * values**power for factor, power in zip(coefficients, (1, 3, 5), strict=True))
    result = orthogonalized(matrix, coefficients, 5, 1e-7)
    assert torch.allclose(result, left @ torch.diag(values) @ right, atol=1e-9)
    assert 0.5 < float(values.min()) <= float(values.max()) < 1.5


def test_a_run_that_goes_on_from_its_state_ends_where_an_unbroken_one_does() -> None:
    """A forgotten momentum makes a resumed run another run."""
    whole, broken = network(), network()
    steps(MuonWithAdam(whole.parameters(), lr=0.01), whole, 0, 6)
    first = MuonWithAdam(broken.parameters(), lr=0.01)
    steps(first, broken, 0, 3)
    second = MuonWithAdam(broken.parameters(), lr=0.5)
    second.load_state_dict(first.state_dict())
    steps(second, broken, 3, 3)
    for mine, other in zip(whole.parameters(), broken.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_each_group_moves_at_its_own_rate_and_the_schedule_reaches_both_rules() -> None:
    """A schedule that one of the two rules does not see leaves it at its first rate for ever."""
    net = network()
    optimizer = MuonWithAdam([{"params": net[0].parameters(), "lr": 0.0}, {"params": net[2].parameters()}], lr=0.01)
    before = [weight.clone() for weight in net.parameters()]
    steps(optimizer, net, 0, 1)
    moved = [not torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True)]
    assert moved == [False, False, False, False, True, True]

    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [weight.clone() for weight in net.parameters()]
    steps(optimizer, net, 1, 1)
    assert all(torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))


def test_state_of_another_optimizer_is_refused() -> None:
    """A checkpoint of an Adam run would start Muon without a word."""
    net = network()
    with pytest.raises(ValueError, match="must hold muon and adam"):
        MuonWithAdam(net.parameters()).load_state_dict(torch.optim.Adam(net.parameters()).state_dict())


def test_schedules_count_steps_and_end_where_they_say() -> None:
    """A schedule stepped an epoch at a time would warm up for a hundred epochs."""
    net = network()
    rates = {}
    for name in ("step", "warmup_cosine"):
        optimizer = torch.optim.Adam(net.parameters(), lr=1.0)
        schedule = learning_rate_schedule(optimizer, name, epochs=4, epoch_length=5, gamma=0.5, warmup_steps=2)
        rates[name] = []
        for _ in range(20):
            rates[name].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        rates[name].append(optimizer.param_groups[0]["lr"])
    assert rates["step"] == [1.0] * 5 + [0.5] * 5 + [0.25] * 5 + [0.125] * 5 + [0.0625]
    assert rates["warmup_cosine"][:3] == [0.0, 0.5, 1.0]
    assert rates["warmup_cosine"][11] == pytest.approx(0.5)
    assert rates["warmup_cosine"][-1] == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(ValueError, match="must be one of"):
        learning_rate_schedule(optimizer, "linear", 1, 1)


def test_a_run_that_is_made_longer_keeps_falling_to_its_own_end() -> None:
    """The state of the shorter run brought its length: the rate rose again where it should have fallen."""
    def begun(epochs: int) -> tuple[torch.optim.Optimizer, LRScheduler]:
        optimizer = torch.optim.SGD(network().parameters(), lr=1.0)
        return optimizer, learning_rate_schedule(optimizer, "warmup_cosine", epochs, epoch_length=5, warmup_steps=2)

    def stepped(optimizer: torch.optim.Optimizer, schedule: LRScheduler, steps: int) -> list[float]:
        rates = []
        for _ in range(steps):
            optimizer.step()
            schedule.step()
            rates.append(optimizer.param_groups[0]["lr"])
        return rates

    unbroken = stepped(*begun(epochs=8), steps=40)
    shorter, longer = begun(epochs=4), begun(epochs=8)
    stepped(*shorter, steps=15)
    longer[0].load_state_dict(shorter[0].state_dict())
    longer[1].load_state_dict(shorter[1].state_dict())
    assert stepped(*longer, steps=25) == pytest.approx(unbroken[15:], abs=1e-12)
