r"""python scripts/widen_p_former.py models/model.pt wide.pt

The P-former of a weights file with twice its channels and the same function: for training that has outgrown it.

    python -m monai.bundle run training --config_file "['configs/train_p_former.json','configs/compact.json']" \
        --dataset_dir fields --start_weights wide.pt --p_former_dim 64
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from bundle.messages import sentence, unwrapped
from bundle.p_former.network import PFormer
from bundle.p_former.widening import widen
from bundle.weights import load_weights, read_state, save_whole

ROOT = Path(__file__).resolve().parent.parent
PART = "p_former."


def p_former(dim: int, overlays: list[str]) -> PFormer:
    """The P-former of the configs with `dim` channels."""
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / f"{name}.json") for name in ("train_p_former", *overlays)])
    parser["p_former_dim"], parser["start_weights"] = dim, None
    network: PFormer = parser.get_parsed_content("p_former")
    return network


def main(arguments: list[str] | None = None) -> int:
    """Widen one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="of the chain or of a P-former alone")
    parser.add_argument("output", type=Path, help="state dict of the wide P-former")
    parser.add_argument("--overlays", nargs="*", default=["compact"], help="configs that name the other sizes")
    parser.add_argument("--seed", type=int, default=0)
    known = parser.parse_args(arguments)
    try:
        state = read_state(known.weights)
        prefix = PART if any(name.startswith(PART) for name in state) else ""
        if f"{prefix}patch_embed.weight" not in state:
            raise ValueError(f"the weights must hold a P-former, {known.weights} holds none.")
        dim = len(state[f"{prefix}patch_embed.weight"])
        narrow, wide = p_former(dim, known.overlays), p_former(2 * dim, known.overlays)
        widen(load_weights(narrow, known.weights, prefix), wide, known.seed)
        save_whole(wide.state_dict(), known.output)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"widen_p_former.py: {sentence(unwrapped(error))}", file=sys.stderr)
        return 1
    print(f"{known.output}: {2 * dim} channels, {sum(value.numel() for value in wide.parameters()):,} parameters")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
