r"""python scripts/grow_p_former.py models/model.pt grown.pt --blocks 1 4 4 6

The P-former of a weights file with more blocks or twice its channels, and the same function: for training that has
outgrown it. Then

    python -m monai.bundle run training --config_file "['configs/train_p_former.json','configs/compact.json']" \
        --dataset_dir fields --start_weights grown.pt --p_former_blocks "[1,4,4,6]"     # after --twice: --p_former_dim
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from bundle.messages import sentence, unwrapped
from bundle.p_former.growing import deepen, widen
from bundle.p_former.network import LEVELS, PFormer
from bundle.weights import load_weights, read_state, save_whole

ROOT = Path(__file__).resolve().parent.parent
PART = "p_former."


def p_former(dim: int, blocks: Sequence[int], overlays: list[str]) -> PFormer:
    """The P-former of the configs with `dim` channels and `blocks`."""
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / f"{name}.json") for name in ("train_p_former", *overlays)])
    parser["p_former_dim"], parser["p_former_blocks"], parser["start_weights"] = dim, list(blocks), None
    network: PFormer = parser.get_parsed_content("p_former")
    return network


def blocks_of(state: dict[str, Any], prefix: str) -> list[int]:
    """How many blocks each level has."""
    levels = [f"{prefix}encoders.{level}." for level in range(LEVELS)]
    return [len({name.removeprefix(level).split(".")[0] for name in state if name.startswith(level)})
            for level in levels]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Grow one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="of the chain or of a P-former alone")
    parser.add_argument("output", type=Path, help="state dict of the larger P-former")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--blocks", type=int, nargs=LEVELS, help="of the four levels, none fewer than before")
    size.add_argument("--twice", action="store_true", help="twice the channels")
    parser.add_argument("--overlays", nargs="*", default=["compact"], help="configs that name the other sizes")
    parser.add_argument("--seed", type=int, default=0)
    known = parser.parse_args(arguments)
    try:
        state = read_state(known.weights)
        prefix = PART if any(name.startswith(PART) for name in state) else ""
        if f"{prefix}patch_embed.weight" not in state:
            raise ValueError(f"the weights must hold a P-former, {known.weights} holds none.")
        dim, blocks = len(state[f"{prefix}patch_embed.weight"]), blocks_of(state, prefix)
        small = load_weights(p_former(dim, blocks, known.overlays), known.weights, prefix)
        torch.manual_seed(known.seed)
        if known.twice:
            grown = p_former(2 * dim, blocks, known.overlays)
            widen(small, grown, known.seed)
        else:
            grown = p_former(dim, known.blocks, known.overlays)
            deepen(small, grown)
        save_whole(grown.state_dict(), known.output)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"grow_p_former.py: {sentence(unwrapped(error))}", file=sys.stderr)
        return 1
    print(f"{known.output}: {len(grown.patch_embed.weight)} channels, blocks {blocks_of(grown.state_dict(), '')},"
          f" {sum(value.numel() for value in grown.parameters()):,} parameters")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
