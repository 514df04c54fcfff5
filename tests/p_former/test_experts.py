"""The prompt-gated feed-forward."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from bundle.p_former.experts import ExpertFeedForward


def feed_forward(**options: object) -> ExpertFeedForward:
    torch.manual_seed(1)
    return ExpertFeedForward(8, 2.0, prompt_width=5, **{"experts": 3, **options})  # type: ignore[arg-type]


def test_merging_the_experts_equals_running_each_of_them() -> None:
    """If merging were wrong, the gates would weigh something that is not an expert, and nobody would see it."""
    network = feed_forward().double()
    x, gates = torch.randn(3, 32, 7, 9, dtype=torch.float64), torch.rand(3, 3, dtype=torch.float64)
    each = [functional.conv2d(x[:, :16], kernel, padding=1, groups=16) for kernel in network.sub_experts]
    mixed = sum(gates[:, i, None, None, None] * expert for i, expert in enumerate(each))
    assert isinstance(mixed, torch.Tensor)
    expected = torch.cat([mixed, network.main_expert(x[:, 16:])], 1)
    assert torch.allclose(network.mixed_experts(x, gates), expected, atol=1e-13)


def test_gates_sum_to_one_and_follow_the_prompt() -> None:
    """Gates that ignore the prompt would make the mixture of prompts a mixture of nothing."""
    network = feed_forward()
    features, prompt = torch.randn(2, 8, 5, 6), torch.randn(2, 5)
    gates = network.gates(features, prompt)
    assert torch.allclose(gates.sum(1), torch.ones(2))
    assert (gates - network.gates(features, prompt + 2)).abs().max() > 1e-3


@pytest.mark.parametrize(("gate_input", "blind_to"), [("features", "prompt"), ("prompt", "features")])
def test_an_ablated_gate_does_not_see_what_was_left_out(gate_input: str, blind_to: str) -> None:
    """Table 4 of the paper compares such gates; a leak would make its rows meaningless."""
    network = feed_forward(gate_input=gate_input)
    features, prompt = torch.randn(2, 8, 5, 6), torch.randn(2, 5)
    changed = (features, prompt + 3) if blind_to == "prompt" else (features + 3, prompt)
    assert torch.equal(network.gates(features, prompt), network.gates(*changed))


def test_the_sum_is_equation_3() -> None:
    """The paper adds the main expert; Restormer multiplies. The wrong one trains, but is another method."""
    network = feed_forward()
    features, prompt = torch.randn(2, 8, 5, 6), torch.randn(2, 5)
    wide = network.project_in(features)
    gelu = functional.gelu(network.mixed_experts(wide, network.gates(features, prompt))[:, :network.hidden])
    main = network.main_expert(wide[:, network.hidden:])
    assert torch.allclose(network(features, prompt), network.project_out(main + gelu))
    product = feed_forward(combine="product")
    assert not torch.allclose(product(features, prompt), network(features, prompt))


def test_an_unknown_combination_is_refused() -> None:
    """A typing error in an ablation must not silently run the default."""
    with pytest.raises(ValueError, match=r"combine must be one of .*'plus'"):
        feed_forward(combine="plus")
