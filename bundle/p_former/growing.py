"""A larger P-former that computes the same: training goes on from a small one instead of from nothing.

Wider: every channel of the narrow network has two copies in the wide one. What reads them gets the narrow network's
weight in two random shares that sum to it, so that the copies learn apart from the first step on. Layer norms see each
value twice, softmaxes over channels give each copy half of the weight: both leave the function as it is.
Deeper: a new block's last convolutions are zero, so that it adds nothing until it has learned to.

Source: Chen et al. 2016 (Net2Net), Net2WiderNet and Net2DeeperNet.
    copies   for every channel of the wide tensor the channel of the narrow one that it copies, (2 C,)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bundle.p_former.experts import ExpertFeedForward
from bundle.p_former.network import PFormer, PFormerBlock

SPREAD = 0.4  # shares of the two copies lie in 0.5 ± this
_SHUFFLED = torch.arange(4)  # the pixels that a change of resolution folds into channels


@torch.no_grad()
def deepen(shallow: PFormer, deep: PFormer) -> None:
    """Fill `deep` so that it computes what `shallow` does: the same blocks, then new ones that add nothing yet.

    Args:
        shallow: the trained network.
        deep: with more `blocks` or `refinement_blocks`, all else equal; new blocks keep what they drew, but for zeros.

    Raises:
        ValueError: `deep` is not `shallow` with more blocks.
    """
    trained, state = shallow.state_dict(), deep.state_dict()
    if any(name not in state or state[name].shape != value.shape for name, value in trained.items()):
        raise ValueError("the deep P-former must have all blocks of the shallow one, with as many channels.")
    for name, value in state.items():
        if name in trained:
            value.copy_(trained[name])
        elif "project_out" in name:
            value.zero_()
        elif not name.startswith(("encoders.", "decoders.", "refinement.")):
            raise ValueError(f"the deep P-former must differ from the shallow one in blocks only, it has {name}.")


@torch.no_grad()
def widen(narrow: PFormer, wide: PFormer, seed: int = 0) -> None:
    """Fill `wide` so that it computes what `narrow` does, up to rounding.

    Args:
        narrow: the trained network.
        wide: of twice its `dim`, all else equal; its weights are replaced.
        seed: of the shares.

    Raises:
        ValueError: `wide` is not `narrow` with twice the channels.
    """
    before, after = len(narrow.patch_embed.weight), len(wide.patch_embed.weight)
    if after != 2 * before or narrow.state_dict().keys() != wide.state_dict().keys():
        raise ValueError(f"the wide P-former must be the narrow one with twice its {before} channels, got {after}.")
    generator = torch.Generator().manual_seed(seed)
    copies = _twice(before)
    wide.patch_embed.weight.copy_(narrow.patch_embed.weight[copies])
    skips = []
    for level, (encoder, wide_encoder) in enumerate(zip(narrow.encoders, wide.encoders, strict=True)):
        _widen_level(encoder, wide_encoder, copies, generator)
        if level < len(narrow.downs):
            skips.append(copies)
            weight, wide_weight = _kernels(narrow.downs[level]), _kernels(wide.downs[level])
            made = _twice(len(weight))
            wide_weight.copy_(_shared(weight[made], copies, generator))
            copies = _folded(made)
    for level in reversed(range(len(narrow.ups))):
        weight, wide_weight = _kernels(narrow.ups[level]), _kernels(wide.ups[level])
        made = _twice(len(weight) // 4)
        wide_weight.copy_(_shared(weight[_folded(made)], copies, generator))
        copies = torch.cat([made, len(weight) // 4 + skips[level]])
        if level:
            weight, wide_weight = _kernels(narrow.reduces[level - 1]), _kernels(wide.reduces[level - 1])
            made = _twice(len(weight))
            wide_weight.copy_(_shared(weight[made], copies, generator))
            copies = made
        _widen_level(narrow.decoders[level], wide.decoders[level], copies, generator)
    _widen_level(narrow.refinement, wide.refinement, copies, generator)
    wide.output.weight.copy_(_shared(narrow.output.weight, copies, generator))


def _kernels(part: nn.Module) -> Tensor:
    """The only weights of a change of resolution or of a convolution."""
    (weight,) = part.parameters()
    return weight


def _widen_level(narrow: nn.Module, wide: nn.Module, copies: Tensor, generator: torch.Generator) -> None:
    for block, wide_block in zip(narrow.children(), wide.children(), strict=True):
        assert isinstance(block, PFormerBlock) and isinstance(wide_block, PFormerBlock)
        for norm, wide_norm in ((block.norm1, wide_block.norm1), (block.norm2, wide_block.norm2)):
            wide_norm.weight.copy_(norm.weight[copies])
            wide_norm.bias.copy_(norm.bias[copies])
        attn, wide_attn, channels = block.attn, wide_block.attn, len(block.norm1.weight)
        heads = _twice(channels)  # neighbours: each head keeps its own channels
        parts = torch.cat([heads, channels + heads, 2 * channels + heads])  # query, key, value
        wide_attn.temperature.copy_(attn.temperature)
        wide_attn.qkv.weight.copy_(_shared(attn.qkv.weight[parts], copies, generator))
        wide_attn.qkv_dwconv.weight.copy_(attn.qkv_dwconv.weight[parts])
        wide_attn.project_out.weight.copy_(_shared(attn.project_out.weight[copies], heads, generator))
        _widen_experts(block.ffn, wide_block.ffn, copies, generator)


def _widen_experts(narrow: ExpertFeedForward, wide: ExpertFeedForward, copies: Tensor, generator: torch.Generator
                   ) -> None:  # fmt: skip
    hidden, kept = _twice(narrow.hidden), 2 * narrow.hidden  # `wide` may have one more: it begins without effect
    halves = _shared(narrow.project_in.weight[torch.cat([hidden, narrow.hidden + hidden])], copies, generator)
    wide.project_in.weight[:kept].copy_(halves[:kept])
    wide.project_in.weight[wide.hidden:wide.hidden + kept].copy_(halves[kept:])
    wide.main_expert.weight[:kept].copy_(narrow.main_expert.weight[hidden])
    wide.sub_experts[:, :kept].copy_(narrow.sub_experts[:, hidden])
    wide.project_out.weight.zero_()
    wide.project_out.weight[:, :kept].copy_(_shared(narrow.project_out.weight[copies], hidden, generator))
    if narrow.router is not None and wide.router is not None:
        reduce, gate, channels = narrow.router.reduce, narrow.router.gate, len(copies) // 2
        wide.router.reduce.weight.copy_(reduce.weight[copies])
        wide.router.reduce.bias.copy_(reduce.bias[copies])
        seen = torch.cat([copies, channels + copies])
        wide.router.gate.weight.copy_(_shared(gate.weight, seen, generator))
        wide.router.gate.bias.copy_(gate.bias)


def _twice(channels: int) -> Tensor:
    """0, 0, 1, 1, …: `copies` where each channel is followed by its twin."""
    return torch.arange(2 * channels) // 2


def _folded(copies: Tensor) -> Tensor:
    """`copies` of a tensor whose channels hold the 2 x 2 pixels of a change of resolution."""
    return (copies[:, None] * len(_SHUFFLED) + _SHUFFLED).flatten()


def _shared(weight: Tensor, copies: Tensor, generator: torch.Generator) -> Tensor:
    """Weights (O, C, …) over narrow channels -> (O, 2 C, …) over their copies, two shares that sum to each weight."""
    places = copies.argsort(stable=True).view(-1, 2)  # of both copies of every channel
    shift = (2 * torch.rand(len(weight), len(places), generator=generator) - 1) * SPREAD
    shares = torch.empty(len(weight), len(copies))
    shares[:, places[:, 0]], shares[:, places[:, 1]] = 0.5 + shift, 0.5 - shift
    return weight[:, copies] * shares.view(*shares.shape, *[1] * (weight.dim() - 2))
