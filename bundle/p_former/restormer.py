"""Published Restormer checkpoints -> the shared part of a P-former.

Their keys name the levels one by one (`encoder_level1.0.attn.qkv.weight`, `down1_2.body.0.weight`) and keep GDFN's
two halves in one depth-wise kernel; here the gated half starts every sub-expert and the other half the main expert.
With `experts=0, combine="product"` the P-former then is that Restormer, exactly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from bundle.p_former.network import PFormer

_NAMES = (
    (r"^patch_embed\.proj\.", "patch_embed."),
    (r"^encoder_level(\d)\.", lambda m: f"encoders.{int(m[1]) - 1}."),
    (r"^latent\.", "encoders.3."),
    (r"^decoder_level(\d)\.", lambda m: f"decoders.{int(m[1]) - 1}."),
    (r"^down(\d)_\d\.", lambda m: f"downs.{int(m[1]) - 1}."),
    (r"^up\d_(\d)\.", lambda m: f"ups.{int(m[1]) - 1}."),
    (r"^reduce_chan_level(\d)\.", lambda m: f"reduces.{int(m[1]) - 2}."),
    (r"\.norm(\d)\.body\.", lambda m: f".norm{m[1]}."),
)


def translated_key(key: str) -> str:
    """Our name of a published Restormer parameter (the depth-wise kernel of a feed-forward aside)."""
    for pattern, replacement in _NAMES:
        key = re.sub(pattern, replacement, key)
    return key


def load_restormer(network: PFormer, checkpoint: Mapping[str, Tensor]) -> list[str]:
    """Load a published Restormer into the shared part of `network`.

    Args:
        network: a P-former of the same dim, blocks and heads, with `unshuffle=1`.
        checkpoint: the published state dict, or a dict that holds it as "params".

    Returns:
        Names of the parameters that the checkpoint does not have: the routers.

    Raises:
        ValueError: a key or a shape of the checkpoint has no place here, or a shared parameter is missing.
    """
    inner = checkpoint.get("params")
    weights: Mapping[str, Tensor] = inner if isinstance(inner, Mapping) else checkpoint
    target = network.state_dict()
    found: dict[str, Tensor] = {}
    for key, value in weights.items():
        name = translated_key(key)
        if name.endswith("ffn.dwconv.weight"):
            stem = name.removesuffix("dwconv.weight")
            gated, main = value.chunk(2, 0)
            found[stem + "main_expert.weight"] = main
            count = len(target.get(stem + "sub_experts", [gated]))
            found[stem + "sub_experts"] = gated[None].repeat(count, 1, 1, 1, 1)
        else:
            found[name] = value
    for name, value in found.items():
        if name not in target or target[name].shape != value.shape:
            wanted = tuple(target[name].shape) if name in target else "no such parameter"
            raise ValueError(f"the Restormer checkpoint does not fit: {name} is {tuple(value.shape)} there, "
                             f"{wanted} here.")
    absent = [name for name in target if name not in found]
    lost = [name for name in absent if ".router." not in name]
    if lost:
        raise ValueError(f"the Restormer checkpoint lacks {len(lost)} parameters, the first is {lost[0]}.")
    network.load_state_dict({**target, **found})
    return absent
