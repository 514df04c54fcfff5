"""The residual-shifting chain."""

from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import Scheduler

from bundle.p_diffusion.schedule import ResidualShiftScheduler


@pytest.fixture
def schedule() -> ResidualShiftScheduler:
    return ResidualShiftScheduler()


def at(t: int, count: int = 1) -> torch.Tensor:
    return torch.full((count,), t, dtype=torch.int64)


def test_the_four_values_are_resshifts(schedule: ResidualShiftScheduler) -> None:
    """Other values are another noise schedule: a checkpoint trained on one restores noise with the other."""
    expected = torch.tensor([0.0, 0.1, 0.5201, 0.7614, 0.99])
    assert torch.allclose(schedule.eta.sqrt(), expected, atol=1e-4)
    assert isinstance(schedule, Scheduler) and schedule.timesteps.tolist() == [4, 3, 2, 1]


def test_a_perfect_denoiser_recovers_x_0(schedule: ResidualShiftScheduler) -> None:
    """If the posterior were wrong, even perfect predictions would end in a blurred or noisy image."""
    x_0, y_0 = torch.rand(2, 3, 8, 12), torch.rand(2, 3, 8, 12)
    x_t = schedule.start(y_0, torch.randn_like(y_0))
    for t in schedule.timesteps.tolist():
        x_t = schedule.step(x_0, at(t, 2), x_t, torch.randn_like(x_t))
    assert torch.allclose(x_t, x_0, atol=1e-6)


@pytest.mark.parametrize("t", [2, 3, 4])
def test_a_reverse_step_lands_on_the_forward_marginal(schedule: ResidualShiftScheduler, t: int) -> None:
    """Training sees q(x_t); sampling must visit the same distribution, or the network is asked what it never saw."""
    generator = torch.Generator().manual_seed(t)
    x_0, y_0 = torch.full((1, 1, 400, 400), 0.3), torch.full((1, 1, 400, 400), -0.5)
    x_t = schedule.shifted(x_0, y_0, torch.randn(x_0.shape, generator=generator), at(t))
    before = schedule.step(x_0, at(t), x_t, torch.randn(x_0.shape, generator=generator))
    eta = float(schedule.eta[t - 1])
    assert float(before.mean()) == pytest.approx(0.3 + eta * -0.8, abs=0.02)
    assert float(before.std()) == pytest.approx(2.0 * eta**0.5, rel=0.02)


def test_the_last_step_adds_no_noise(schedule: ResidualShiftScheduler) -> None:
    """Noise in the last step would end up in the restored image."""
    x, x_0 = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    steps = [schedule.step(x_0, at(1), x, torch.randn_like(x)) for _ in range(2)]
    assert torch.equal(steps[0], steps[1])


def test_the_scaled_state_has_about_unit_variance(schedule: ResidualShiftScheduler) -> None:
    """A network whose input grows fourfold with t learns the scale instead of the image."""
    image = torch.randn(1, 1, 300, 300)
    for t in (1, 4):
        state = schedule.scaled(schedule.shifted(image, image, torch.randn_like(image), at(t)), at(t))
        assert float(state.var()) == pytest.approx(1.0, rel=0.05)


def test_an_impossible_schedule_is_refused() -> None:
    """eta_T above 1 would shift past the degraded image."""
    with pytest.raises(ValueError, match=r"last in \(0, 1\], got 4, 2.0 and 1.2"):
        ResidualShiftScheduler(last=1.2)
