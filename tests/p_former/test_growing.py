"""A large P-former that begins as a small one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bundle.p_former.growing import deepen, widen
from bundle.p_former.network import PFormer


def randomly_filled(**options: Any) -> PFormer:
    """The output's weights random, too: a network that returns its input would hide every error."""
    torch.manual_seed(3)
    network = PFormer(prompt_width=12, **options).eval()
    torch.nn.init.normal_(network.output.weight, std=0.1)
    for name, value in network.named_parameters():
        if "norm" in name or "temperature" in name:
            torch.nn.init.normal_(value, 0.5, 0.3)
    return network


@pytest.mark.parametrize("options", [
    {"dim": 8, "blocks": (1, 2, 1, 1), "refinement_blocks": 2, "unshuffle": 2},
    {"dim": 16, "blocks": (1, 1, 1, 1), "refinement_blocks": 1, "expansion": 2.6667, "combine": "product"},
    {"dim": 8, "blocks": (1, 1, 1, 1), "refinement_blocks": 1, "experts": 0},
])
def test_the_wide_network_computes_what_the_narrow_one_does(options: dict[str, Any]) -> None:
    """Hours of training would be thrown away with a single weight in the wrong place."""
    narrow = randomly_filled(**options)
    wide = randomly_filled(**options | {"dim": 2 * options["dim"]})
    image, prompt = torch.rand(2, 3, 32, 48), torch.randn(2, 5, 12)
    with torch.no_grad():
        wanted = narrow(image, prompt)
        assert not torch.allclose(wide(image, prompt), wanted, atol=1e-2)
        widen(narrow, wide)
        assert float((wanted - image).abs().max()) > 0.1
        assert torch.allclose(wide(image, prompt), wanted, atol=1e-5)


def test_both_copies_of_a_channel_learn_apart() -> None:
    """With equal shares both would get the same gradient for ever: a wide network of narrow worth."""
    narrow = randomly_filled(dim=8, blocks=(1, 1, 1, 1), refinement_blocks=1)
    wide = randomly_filled(dim=16, blocks=(1, 1, 1, 1), refinement_blocks=1)
    widen(narrow, wide)
    wide(torch.rand(1, 3, 32, 32), torch.randn(1, 5, 12)).square().mean().backward()
    gradient = wide.patch_embed.weight.grad
    assert gradient is not None and not torch.allclose(gradient[::2], gradient[1::2], rtol=0.01)


def test_another_network_is_refused() -> None:
    """Half filled it would train from a mixture of two networks."""
    narrow = PFormer(8, (1, 1, 1, 1), 1, prompt_width=12)
    for options in ({"dim": 8}, {"dim": 24}, {"dim": 16, "refinement_blocks": 2}):
        other = PFormer(**{"blocks": (1, 1, 1, 1), "refinement_blocks": 1, "prompt_width": 12} | options)
        with pytest.raises(ValueError, match="twice its 8 channels"):
            widen(narrow, other)


def test_the_deep_network_computes_what_the_shallow_one_does_and_all_of_it_learns() -> None:
    """A new block adds nothing at first, but its last convolutions get a gradient, and then the others."""
    options = {"dim": 8, "refinement_blocks": 1, "unshuffle": 2}
    shallow, deep = randomly_filled(blocks=(1, 2, 1, 1), **options), randomly_filled(blocks=(2, 2, 3, 1), **options)
    image, prompt = torch.rand(2, 3, 32, 48), torch.randn(2, 5, 12)
    with torch.no_grad():
        deepen(shallow, deep)
        assert torch.equal(deep(image, prompt), shallow(image, prompt))
    optimizer = torch.optim.SGD(deep.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (deep(image, prompt) - torch.rand(2, 3, 32, 48)).square().mean().backward()
        optimizer.step()
    new = [value for name, value in deep.named_parameters() if ".2." in name or "encoders.0.1." in name]
    assert len(new) > 40 and all(value.grad is not None and value.grad.abs().sum() > 0 for value in new)


def test_what_is_not_deeper_is_refused() -> None:
    """With fewer blocks or other channels the function would be another."""
    shallow = PFormer(8, (1, 2, 1, 1), 1, prompt_width=12)
    for options in ({"blocks": (1, 1, 1, 1)}, {"dim": 16}, {"experts": 0}):
        other = PFormer(**{"dim": 8, "blocks": (1, 2, 1, 1), "refinement_blocks": 1, "prompt_width": 12} | options)
        with pytest.raises(ValueError, match="all blocks of the shallow one"):
            deepen(shallow, other)
