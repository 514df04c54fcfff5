"""Train the shipped compact weights, every stage in order, and put them into models/.

    python scripts/train_compact.py --data ../shared/data/tiles --runs runs       # or: make train DATA=folder

Reads   a folder of sharp fields with index.json (see bundle/data/fields.py)
Writes  runs/<stage>/checkpoint.pt and network.pt after every epoch; models/model.pt at the end

Stopped at any moment, the same command goes on from the last checkpoint; finished stages are skipped. Hours, steps and
figures of the shipped weights stand in models/README.md. Anything after `--` goes to every stage, as `-- --seed 3`;
`spectrum` and `tiles` go on where `defocus` and `p_former` ended and have the same options, `sampling` has those of
`defocus`. `--bands` adds stage 3c behind `tiles` (docs/stages.md); its weights want `gain_hidden` of configs/bands.json
in configs/inference.json, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from bundle.messages import as_program
from bundle.training.checkpoints import WEIGHTS
from bundle.weights import load_weights, save_whole

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("encoder", "defocus", "spectrum", "sampling", "prompt", "p_former", "tiles", "p_diffusion")
# Config and overlay of the stages that have one: later parts of a stage's training, or draws of its own.
OVERLAYS = {"spectrum": ("defocus", "spectrum"), "sampling": ("defocus", "sampling"), "tiles": ("p_former", "tiles"),
            "bands": ("p_former", "bands"), "p_diffusion": ("p_diffusion", "texture")}
# glibc keeps large blocks instead of mapping them anew for every layer: see bundle/host.py.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
# Where a stage's network lies in the chain, and in its own file.
PLACES = {"encoder": ("prompter.encoder", "encoder."), "spectrum": ("prompter.estimator", ""),
          "sampling": ("sampling", ""), "prompt": ("prompter.restorer", ""), "tiles": ("p_former", ""),
          "p_diffusion": ("denoiser", "")}
# The two deepest levels, see `stored`.
DEEP = tuple(f"p_former.{part}." for part in ("encoders.2", "encoders.3", "decoders.2", "ups.1", "ups.2"))
SMALL_NUMEL = 4096  # entries of so few numbers, as norms, stay in 16 bits


def train(stage: str, data: Path, runs: Path, extra: list[str]) -> None:
    """Run one stage's config with the compact overlay in a process of its own."""
    first, *overlay = OVERLAYS.get(stage, (stage,))
    files = [f"configs/{name}.json" for name in (f"train_{first}", "compact", *overlay)]
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", str(files),
               "--dataset_dir", str(data.resolve()), "--runs_dir", str(runs.resolve()),
               "--estimator_weights", str((runs / "spectrum" / WEIGHTS).resolve()),
               "--p_former_weights", str((runs / "tiles" / WEIGHTS).resolve()),
               "--encoder_weights", str((runs / "encoder" / WEIGHTS).resolve()), "--encoder_prefix", "encoder.", *extra]
    if subprocess.run(command, cwd=ROOT, check=False, env={**os.environ, **ALLOCATOR}).returncode:
        sys.exit(f"train_compact.py: stage {stage} ended early, why is said above: the same line goes on from there.")


def assemble(runs: Path, target: Path, bands: bool = False) -> None:
    """Put the stages' networks into one state dict of `network_def` of configs/inference.json, as `stored`."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / "inference.json"))
    if bands:
        parser.update({"gain_hidden": gain_hidden()})
    network = parser.get_parsed_content("network_def")
    for stage, (place, prefix) in (PLACES | ({"bands": ("bands", "")} if bands else {})).items():
        load_weights(network.get_submodule(place), runs / stage / WEIGHTS, prefix)
    save_whole({name: stored(name, value) for name, value in network.state_dict().items()}, target)


def stored(name: str, value: torch.Tensor) -> torch.Tensor:
    """An entry of the chain's state dict in the type that it is shipped in; `load_state_dict` makes float32 of any.

    float16, but 8 bits (four of exponent, three of mantissa) for the kernels of the P-former's two deepest levels,
    which are near half of all and bear it: a file of the model zoo has at most 25 MB (decisions 13 and 18).
    """
    if value.dtype != torch.float32:
        return value
    coarse = name.startswith(DEEP) and value.numel() > SMALL_NUMEL
    return value.to(torch.float8_e4m3fn if coarse else torch.float16)


def gain_hidden() -> int:
    """Channels of the band gains' reader, as stage 3c trains it."""
    return int(json.loads((ROOT / "configs" / "bands.json").read_text(encoding="utf-8"))["gain_hidden"])


@as_program
def main() -> None:
    """Parse the line above and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of sharp fields of at least 320 px a side")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of checkpoints")
    parser.add_argument("--target", type=Path, default=ROOT / "models" / "model.pt", help="the weights to write")
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=STAGES, help="stages to train")
    parser.add_argument("--bands", action="store_true", help="band gains behind the P-former: stage 3c, too")
    known, extra = parser.parse_known_args()
    extra = [word for word in extra if word != "--"]
    stages = list(known.stages)
    if known.bands:
        stages.insert(stages.index("tiles") + 1 if "tiles" in stages else 0, "bands")
    for stage in stages:
        behind = ["--gain_hidden", str(gain_hidden()), "--band_weights",
                  str((known.runs / "bands" / WEIGHTS).resolve())]
        train(stage, known.data, known.runs, extra + (behind if known.bands and stage == "p_diffusion" else []))
    assemble(known.runs, known.target, known.bands)


if __name__ == "__main__":
    raise SystemExit(main())
