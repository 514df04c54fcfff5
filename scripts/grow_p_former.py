r"""python scripts/grow_p_former.py models/model.pt grown.pt --blocks 1 5 6 6

The P-former of a weights file with more blocks or twice its channels, and the same function: for training that has
outgrown it. `--refinement 4` gives it more blocks behind the decoder. Then

    python -m monai.bundle run training --config_file "['configs/train_p_former.json','configs/compact.json']" \
        --dataset_dir fields --start_weights grown.pt --p_former_blocks "[1,5,6,6]"

After --twice name --p_former_dim in its place, after --refinement --p_former_refinement.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser

from bundle.messages import as_program
from bundle.p_former.growing import deepen, widen
from bundle.p_former.network import LEVELS, PFormer
from bundle.weights import load_weights, read_state, save_whole

ROOT = Path(__file__).resolve().parent.parent
PART = "p_former."


class Size(NamedTuple):
    """What a P-former can be grown in."""

    dim: int  # channels of the finest level
    blocks: Sequence[int]  # of the four levels
    refinement: int  # blocks behind the decoder


def p_former(size: Size, overlays: list[str]) -> PFormer:
    """The P-former of the configs in this size."""
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / f"{name}.json") for name in ("train_p_former", *overlays)])
    parser["p_former_dim"], parser["p_former_blocks"] = size.dim, list(size.blocks)
    parser["p_former_refinement"], parser["start_weights"] = size.refinement, None
    network: PFormer = parser.get_parsed_content("p_former")
    return network


def size_of(state: dict[str, Any], prefix: str) -> Size:
    """Size of the P-former whose entries begin with `prefix`."""
    levels = [f"{prefix}{level}." for level in (*(f"encoders.{depth}" for depth in range(LEVELS)), "refinement")]
    *blocks, refinement = [len({name.removeprefix(level).split(".")[0] for name in state if name.startswith(level)})
                           for level in levels]  # fmt: skip
    return Size(len(state[f"{prefix}patch_embed.weight"]), blocks, refinement)


@as_program
def main(arguments: list[str] | None = None) -> None:
    """Grow one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="of the chain or of a P-former alone")
    parser.add_argument("output", type=Path, help="state dict of the larger P-former")
    parser.add_argument("--blocks", type=int, nargs=LEVELS, help="of the four levels, none fewer than before")
    parser.add_argument("--refinement", type=int, help="blocks behind the decoder, no fewer than before")
    parser.add_argument("--twice", action="store_true", help="twice the channels, and nothing else")
    parser.add_argument("--overlays", nargs="*", default=["compact"], help="configs that name the other sizes")
    parser.add_argument("--seed", type=int, default=0)
    known = parser.parse_args(arguments)
    deeper = known.blocks is not None or known.refinement is not None
    if deeper == known.twice:
        parser.error("give either --twice alone, or --blocks, --refinement or both of them.")
    state = read_state(known.weights)
    prefix = PART if any(name.startswith(PART) for name in state) else ""
    if f"{prefix}patch_embed.weight" not in state:
        raise ValueError(f"the weights must hold a P-former, {known.weights} holds none.")
    size = size_of(state, prefix)
    small = load_weights(p_former(size, known.overlays), known.weights, prefix)
    torch.manual_seed(known.seed)
    if known.twice:
        grown = p_former(size._replace(dim=2 * size.dim), known.overlays)
        widen(small, grown, known.seed)
    else:
        wanted = {name: count for name in ("blocks", "refinement") if (count := getattr(known, name)) is not None}
        grown = p_former(size._replace(**wanted), known.overlays)
        deepen(small, grown)
    save_whole(grown.state_dict(), known.output)
    grown_size = size_of(grown.state_dict(), "")
    print(f"{known.output}: {grown_size.dim} channels, blocks {grown_size.blocks}, refinement {grown_size.refinement},"
          f" {sum(value.numel() for value in grown.parameters()):,} parameters")


if __name__ == "__main__":
    raise SystemExit(main())
