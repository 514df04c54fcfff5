r"""python scripts/average_weights.py epoch60.pt epoch80.pt epoch100.pt mean.pt

The mean of several weights of one network: of copies of a run's `network.pt`, taken while its rate was still high, or
of runs that began with the same weights. Worth 0.1 dB to the shipped P-former at no cost (docs/decisions/0004).
Weights that are no kin of each other average to nothing: measure the mean before you use it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bundle.messages import as_program
from bundle.weights import read_state, save_whole


def mean(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Entry by entry, summed in double precision; whole numbers, such as counts of batches, are the first's.

    Raises:
        ValueError: an entry is missing from one of them, has another size in it, or is no tensor.
    """
    for name in sorted({name for state in states for name in state}):
        entries = [state.get(name) for state in states]
        if not all(isinstance(entry, Tensor) for entry in entries) or len({entry.shape for entry in entries}) > 1:
            raise ValueError(f"all weights must be of one network, {name} differs in presence or size.")
    return {name: torch.stack([state[name].double() for state in states]).mean(0).to(first.dtype)
            if first.is_floating_point() else first for name, first in states[0].items()}  # fmt: skip


@as_program
def main(arguments: list[str] | None = None) -> None:
    """Average files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="+", help="state dicts of one network, two or more")
    parser.add_argument("output", type=Path, help="their mean")
    known = parser.parse_args(arguments)
    if len(known.weights) < 2:
        raise ValueError(f"a mean must be of two files or more, got {len(known.weights)}.")
    for file in known.weights:
        if not file.is_file():
            raise FileNotFoundError(f"weights must exist, {file} does not.")
    state = mean([read_state(file) for file in known.weights])
    save_whole(state, known.output)
    print(f"{known.output}: the mean of {len(known.weights)} files, {len(state)} entries")


if __name__ == "__main__":
    raise SystemExit(main())
