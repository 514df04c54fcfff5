"""Compact encoder and prompt restorer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bundle.prompts.compact_encoder import CompactEncoder
from bundle.prompts.pathology import PromptRestorer


def restorer(**options: object) -> PromptRestorer:
    torch.manual_seed(0)
    network = PromptRestorer(12, 8, 2, 3, **options).eval()  # type: ignore[arg-type]
    nn.init.normal_(network.correction.weight, std=0.2)
    return network


def test_an_untrained_restorer_passes_the_prompt_on() -> None:
    """A restorer that starts by destroying P_LP would have to learn the encoder anew."""
    tokens = torch.randn(2, 5, 12)
    assert torch.equal(PromptRestorer(12, 8, 2, 3)(tokens, torch.randn(2, 8, 2, 2)), tokens)


def test_attention_stays_within_one_image() -> None:
    """The released code attends across the batch: a tile's prompt would depend on its neighbours in the batch."""
    network, tokens, defocus = restorer(), torch.randn(3, 5, 12), torch.randn(3, 8, 2, 3)
    together = network(tokens, defocus)
    alone = torch.cat([network(tokens[i:i + 1], defocus[i:i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("defocus_tokens", ["spatial", "pooled"])
def test_the_defocus_prompt_changes_the_restored_prompt(defocus_tokens: str) -> None:
    """A restorer blind to defocus cannot know how much to restore."""
    network, tokens, defocus = restorer(defocus_tokens=defocus_tokens), torch.randn(1, 5, 12), torch.randn(1, 8, 2, 3)
    assert (network(tokens, defocus) - network(tokens, defocus.roll(1, 1))).abs().max() > 1e-4


def test_only_spatial_tokens_know_where_it_is_blurred() -> None:
    """Pooling is the paper's figure; uneven tissue is why the default keeps positions."""
    tokens, defocus = torch.randn(1, 5, 12), torch.randn(1, 8, 2, 3)
    for name, sees in (("spatial", True), ("pooled", False)):
        network = restorer(defocus_tokens=name)
        moved = (network(tokens, defocus) - network(tokens, defocus.flip(-1))).abs().max()
        assert (moved > 1e-4) == sees


@pytest.mark.parametrize(("height", "width", "count"), [(64, 96, 24), (50, 17, 8), (1, 1, 1)])
def test_the_encoder_takes_tiles_of_any_size(height: int, width: int, count: int) -> None:
    """Tiles at a slide's edge and small images are smaller than the patches of training."""
    assert CompactEncoder(16, 1, 4)(torch.rand(2, 3, height, width)).shape == (2, 1 + count, 16)


def test_masked_patches_do_not_reach_the_tokens() -> None:
    """A masked autoencoder that sees what it must predict learns nothing."""
    encoder, image = CompactEncoder(16, 2, 4).eval(), torch.rand(1, 3, 32, 32)
    kept = torch.tensor([[0, 3]])
    changed = image.clone()
    changed[..., :16, 16:] = 0  # patch 1
    assert torch.equal(encoder(image, kept), encoder(changed, kept))
    assert not torch.equal(encoder(image), encoder(changed))
