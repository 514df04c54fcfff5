"""The denoiser and its sampling."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bundle.p_diffusion.denoiser import Denoiser
from bundle.p_diffusion.inferer import ResidualShiftInferer, RestoringInferer
from bundle.p_diffusion.schedule import ResidualShiftScheduler
from bundle.prompts.mixture import PromptMixture


def tiny(**options: object) -> Denoiser:
    torch.manual_seed(3)
    network = Denoiser((16, 32), (False, True), 1, prompt_width=6, defocus_width=5, norm_groups=8, head_channels=16,
                       **options).eval()  # type: ignore[arg-type]
    for parameter in network.parameters():  # MONAI starts the last layer of every branch at zero
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return network


def prompts(count: int, height: int, width: int) -> PromptMixture:
    generator = torch.Generator().manual_seed(4)
    defocus, pathology = torch.randn(count, 5, 1, 2, generator=generator), torch.randn(count, 7, 6, generator=generator)
    return PromptMixture(defocus, pathology,
                         (torch.rand(count, 1, height, width, generator=generator) > 0.8).float(),
                         torch.zeros(count), torch.ones(count))


class Oracle(nn.Module):
    """A denoiser that knows the answer."""

    def __init__(self, x_0: torch.Tensor) -> None:
        super().__init__()
        self.x_0 = x_0

    def forward(self, *_: torch.Tensor) -> torch.Tensor:
        return self.x_0


def test_an_untrained_network_returns_the_image_to_refine() -> None:
    """P-diffusion must start from the coarse image, not from invention."""
    network = Denoiser((16, 32), (False, True), 1, prompt_width=6, defocus_width=5, norm_groups=8, head_channels=16)
    y_0, mixture = torch.randn(1, 3, 16, 24), prompts(1, 16, 24)
    out = network(torch.randn_like(y_0), y_0, torch.tensor([2]), mixture.pathology, mixture.edges, mixture.defocus)
    assert torch.equal(out, y_0)


@pytest.mark.parametrize("changed", ["pathology", "edges", "defocus"])
def test_every_prompt_reaches_the_prediction(changed: str) -> None:
    """A prompt that is computed and then ignored is what an ablation would find, too late."""
    network, mixture = tiny(), prompts(1, 16, 24)
    x, step = torch.randn(1, 3, 16, 24), torch.tensor([1])
    other = mixture._replace(**{changed: getattr(mixture, changed).flip(-1).flip(1)})
    first, second = (network(x, x, step, m.pathology, m.edges, m.defocus) for m in (mixture, other))
    assert (first - second).abs().max() > 1e-5


def test_ablated_prompts_do_not_reach_the_prediction() -> None:
    """Rows "none" of table 5 must really be none."""
    network = tiny(use_pathology=False, use_edges=False)
    mixture = prompts(1, 16, 24)
    x, step = torch.randn(1, 3, 16, 24), torch.tensor([1])
    first = network(x, x, step, mixture.pathology, mixture.edges, mixture.defocus)
    second = network(x, x, step, mixture.pathology + 1, 1 - mixture.edges, mixture.defocus + 1)
    assert torch.equal(first, second)


def test_unweighted_edges_do_not_ask_the_defocus_prompt() -> None:
    """Row P_LE of table 5 is the edges without P_D; row P_E is with it."""
    mixture, x, step = prompts(1, 16, 24), torch.randn(1, 3, 16, 24), torch.tensor([1])
    network = tiny(use_defocus=False)
    first = network(x, x, step, mixture.pathology, mixture.edges, mixture.defocus)
    assert torch.equal(first, network(x, x, step, mixture.pathology, mixture.edges, mixture.defocus + 1))
    assert not torch.equal(first, network(x, x, step, mixture.pathology, 1 - mixture.edges, mixture.defocus))


def test_validation_restores_without_seeing_the_label() -> None:
    """A metric of a network that was shown the answer says nothing of what users get."""
    inferer, mixture = ResidualShiftInferer(ResidualShiftScheduler()), prompts(2, 16, 24)
    network, coarse = tiny(), torch.rand(2, 3, 16, 24)
    restored = RestoringInferer(inferer, seed=3)(coarse, network, torch.rand(2, 3, 16, 24), None, None, mixture)
    expected = inferer.sample(coarse, network, mixture, torch.zeros(2, 2, dtype=torch.int64), seed=3)
    assert torch.equal(restored, expected)


def test_a_perfect_denoiser_recovers_the_truth_in_unit_range() -> None:
    """The whole sampling loop, ranges included: [0, 1] in, [0, 1] out."""
    truth, coarse = torch.rand(2, 3, 16, 24), torch.rand(2, 3, 16, 24)
    inferer = ResidualShiftInferer(ResidualShiftScheduler())
    sampled = inferer.sample(coarse, Oracle(truth * 2 - 1), prompts(2, 16, 24), torch.tensor([[0, 0], [5, 9]]), seed=1)
    assert torch.allclose(sampled, truth, atol=1e-6)
    assert torch.allclose(inferer(coarse, Oracle(truth * 2 - 1), truth, torch.randn_like(truth), torch.tensor([4, 1]),
                                  prompts(2, 16, 24)), truth, atol=1e-6)


def test_the_same_seed_gives_the_same_pixels_whatever_the_batch() -> None:
    """A slide restored twice must be the same slide."""
    inferer, network, mixture = ResidualShiftInferer(ResidualShiftScheduler()), tiny(), prompts(3, 16, 24)
    coarse, places = torch.rand(3, 3, 16, 24), torch.tensor([[0, 0], [16, 0], [0, 24]])
    with torch.no_grad():
        together = inferer.sample(coarse, network, mixture, places, seed=5)
        for i in (2, 0, 1):
            one = PromptMixture(*(part[i:i + 1] for part in mixture))
            alone = inferer.sample(coarse[i:i + 1], network, one, places[i:i + 1], seed=5)
            assert torch.allclose(alone, together[i:i + 1], atol=1e-5)
        assert not torch.allclose(inferer.sample(coarse, network, mixture, places, seed=6), together, atol=1e-3)


def test_own_steps_reach_what_sampling_reaches_and_never_see_the_label() -> None:
    """Trained on states that hold the answer only, the last step trusts what earlier predictions got wrong."""
    inferer, network = ResidualShiftInferer(ResidualShiftScheduler()), tiny()
    mixture = PromptMixture(*(part.expand(4, *part.shape[1:]) for part in prompts(1, 16, 24)))
    coarse, label = torch.rand(1, 3, 16, 24).expand(4, -1, -1, -1), torch.rand(4, 3, 16, 24)
    draws = torch.randn(4, 1, 3, 16, 24).expand(-1, 4, -1, -1, -1)  # of x_T and of three steps
    own_steps = {"own": torch.ones(4, dtype=torch.bool), "later_noise": draws[1:].transpose(0, 1)}
    timestep, seen = torch.tensor([4, 3, 2, 1]), []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        inferer.sample_with(coarse, network, mixture, list(draws))
        wanted = torch.stack([state[0] for state in seen])  # x_4, x_3, x_2, x_1, scaled
        own = inferer(coarse, network, label, draws[0], timestep, mixture, **own_steps)
        assert torch.allclose(seen[-1], wanted, atol=1e-5)
        assert torch.equal(own, inferer(coarse, network, 1 - label, draws[0], timestep, mixture, **own_steps))
        drawn = inferer(coarse, network, label, draws[0], timestep, mixture)
        one = inferer(coarse, network, label, draws[0], timestep, mixture, **own_steps | {"own": timestep == 2})
        assert torch.equal(one[[0, 1, 3]], drawn[[0, 1, 3]]) and torch.allclose(one[2], own[2], atol=1e-5)
        assert not torch.allclose(one[2], drawn[2], atol=1e-4)
