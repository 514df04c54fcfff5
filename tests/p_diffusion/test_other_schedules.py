"""The chains of other methods: the same laws as ours, and the values that their papers name."""

from __future__ import annotations

import math

import pytest
import torch

from bundle.p_diffusion.other_schedules import GaussianChain, IrSdeScheduler, ResfusionScheduler
from bundle.p_diffusion.schedule import ResidualShiftScheduler

CHAINS = [ResfusionScheduler(5), IrSdeScheduler(100), IrSdeScheduler(7, noise=0.3)]


def at(t: int, count: int = 1) -> torch.Tensor:
    return torch.full((count,), t, dtype=torch.int64)


@pytest.mark.parametrize("chain", CHAINS)
def test_a_perfect_denoiser_recovers_x_0(chain: GaussianChain) -> None:
    """A wrong posterior would make another method look worse than it is."""
    x_0, y_0 = torch.rand(2, 3, 8, 12), torch.rand(2, 3, 8, 12)
    x_t = chain.start(y_0, torch.randn_like(y_0))
    for t in chain.timesteps.tolist():
        x_t = chain.step(x_0, at(t, 2), x_t, torch.randn_like(x_t), y_0)
    assert torch.allclose(x_t, x_0, atol=1e-5)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("back", [0, 2])
def test_a_reverse_step_lands_on_the_forward_marginal(chain: GaussianChain, back: int) -> None:
    """Sampling must visit the states that training has shown to the network."""
    generator, t = torch.Generator().manual_seed(back), chain.num_train_timesteps - back
    x_0, y_0 = torch.full((1, 1, 300, 300), 0.3), torch.full((1, 1, 300, 300), -0.5)
    x_t = chain.shifted(x_0, y_0, torch.randn(x_0.shape, generator=generator), at(t))
    before = chain.step(x_0, at(t), x_t, torch.randn(x_0.shape, generator=generator), y_0)
    mean = 0.3 * float(chain.a[t - 1]) - 0.5 * float(chain.b[t - 1])
    assert float(before.mean()) == pytest.approx(mean, abs=0.01)
    assert float(before.std()) == pytest.approx(float(chain.s[t - 1]), rel=0.02)


def test_a_reverse_step_keeps_of_a_state_what_its_method_keeps() -> None:
    """A step that drew afresh would land on the marginal, too, but would be another method's sampling."""
    resfusion, ir_sde = ResfusionScheduler(5), IrSdeScheduler(7, noise=0.3)
    kept = ((1 - resfusion.b[5]) / (1 - resfusion.b[4]), ir_sde.a[7] / ir_sde.a[6])  # sqrt(alpha_T), exp(-θ_T)
    for chain, keeps in zip((resfusion, ir_sde), map(float, kept), strict=True):
        assert keeps < 0.9
        t, zeros = chain.num_train_timesteps, torch.zeros(1, 1, 300, 300)
        generator = torch.Generator().manual_seed(t)
        x_t = chain.shifted(zeros, zeros, torch.randn(zeros.shape, generator=generator), at(t))
        before = chain.step(zeros, at(t), x_t, torch.randn(zeros.shape, generator=generator), zeros)
        expected = keeps * float(chain.s[t - 1]) ** 2  # covariance of x_{T-1} and r x_{T-1} + fresh noise
        spread = float(chain.s[t] * chain.s[t - 1])
        assert float((before * x_t).mean()) == pytest.approx(expected, abs=0.02 * spread)


def test_resshift_is_one_of_these_chains() -> None:
    """The general posterior is held against the one that was derived on its own."""
    ours = ResidualShiftScheduler()
    chain = GaussianChain(1 - ours.eta, ours.eta, ours.kappa * ours.eta.sqrt(), torch.ones(4))
    x_0, y_0, noise = (torch.randn(4, 3, 6, 10) for _ in range(3))
    t = torch.tensor([1, 2, 3, 4])
    x_t = ours.shifted(x_0, y_0, noise, t)
    torch.testing.assert_close(chain.shifted(x_0, y_0, noise, t), x_t)
    torch.testing.assert_close(chain.step(x_0, t, x_t, noise, y_0), ours.step(x_0, t, x_t, noise), atol=1e-5, rtol=0)


def test_the_ends_are_those_of_the_papers() -> None:
    """Resfusion starts where x_0 has no weight, IR-SDE at the degraded image in noise of λ = 10/255."""
    resfusion, ir_sde = CHAINS[:2]
    assert float(resfusion.a[-1]) == pytest.approx(0, abs=1e-6) and float(resfusion.b[-1]) == pytest.approx(0.5)
    assert float(resfusion.s[-1]) == pytest.approx(math.sqrt(0.75))
    assert float(ir_sde.a[-1]) == pytest.approx(0.005) and ir_sde.num_train_timesteps == 100
    assert float(ir_sde.s[-1]) / 2 == pytest.approx(10 / 255, rel=1e-4)
    for chain in CHAINS:
        assert [float(values[0]) for values in (chain.a, chain.b, chain.s)] == [1, 0, 0]
        assert bool((chain.s.diff() > 0).all())


@pytest.mark.parametrize(("build", "message"), [
    (lambda: ResfusionScheduler(0), "must be positive and 0 < first < last, got 0"),
    (lambda: IrSdeScheduler(4, noise=0.0), "must be positive and rest in"),
])
def test_numbers_without_a_chain_are_refused(build: type, message: str) -> None:
    """An overlay with a slip must not end in NaN hours later."""
    with pytest.raises(ValueError, match=message):
        build()
