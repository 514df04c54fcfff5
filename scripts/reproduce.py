"""python scripts/reproduce.py --table 4 --data FIELDS --budget 1000

Trains every row of the paper's table 4, 5 or 6 with the same small budget and scores it. Reads a folder of sharp fields
(its splits train, val and test) and, for the frozen parts, models/model.pt. Writes `<runs>/table_N.json` and
`table_N.md`. A row is a config in configs/ablations/ over the stage's config and configs/compact.json. Killed, the same
line goes on; rows that are done are only scored again. docs/reproduce.md puts the figures beside the paper's.

Scores are of random patches of the test split, the same for all rows, not of stitched fields as in the paper.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigWorkflow
from torch import Tensor

from bundle.training.checkpoints import WEIGHTS
from bundle.training.metrics import psnr, ssim
from bundle.weights import load_weights

ROOT = Path(__file__).resolve().parent.parent
EPOCH = 50  # steps between checkpoints
IN_FOCUS_UM = 0.4  # half a plane: Z-accuracy


class Table(NamedTuple):
    """What a table of the paper compares."""

    stage: str  # whose training is repeated
    rows: dict[str, str]  # end of the overlay's name -> the paper's name of the row
    score: Callable[[Any, Tensor], dict[str, Tensor]]  # figures of each patch, (B,)


def image_scores(restored: Tensor, label: Tensor) -> dict[str, Tensor]:
    """PSNR, dB, and SSIM of each patch."""
    restored = restored.clamp(0, 1)
    return {"PSNR, dB": psnr(restored, label), "SSIM": ssim(restored, label)}


def estimate_scores(estimate: Any, target: Tensor) -> dict[str, Tensor]:
    """Errors of contrast (NaN where it is undefined) and distance, µm, and whether the plane is right."""
    distance = (estimate.defocus_um - target[:, 0]).abs()
    return {"MAE(contrast)": (estimate.contrast - target[:, 1]).abs(), "MAE(distance), µm": distance,
            "Z-accuracy": (distance < IN_FOCUS_UM).float()}


TABLES = {
    4: Table("p_former", {"f": "F", "pd": "P_D", "plp": "P_LP", "pp": "P_P", "f_pd": "F + P_D", "f_plp": "F + P_LP",
                          "f_pp": "F + P_P", "f_pd_plp": "F + P_D + P_LP", "f_pd_pp": "F + P_D + P_P"}, image_scores),
    5: Table("p_diffusion", {"none": "-", "pp": "P_P", "ple": "P_LE", "pe": "P_E", "pp_pe": "P_P + P_E"}, image_scores),
    6: Table("defocus", {"contrast": "contrast", "distance": "distance", "both": "contrast + distance"},
             estimate_scores),
}
# What a row of table 6 has not learned is no result.
UNTRAINED = {"contrast": ("MAE(distance), µm", "Z-accuracy"), "distance": ("MAE(contrast)",)}


def row_workflow(number: int, row: str, data: Path, folder: Path, budget: int, overlays: list[str],
                 **options: Any) -> ConfigWorkflow:
    """The training of a row, with the budget as its only number."""
    stage = TABLES[number].stage
    epochs = math.ceil(budget / EPOCH)
    files = [f"configs/{name}.json" for name in (f"train_{stage}", *overlays, f"ablations/table{number}_{row}")]
    options |= {f"{stage}_epochs": epochs, f"{stage}_epoch_length": math.ceil(budget / epochs), "val_interval": epochs,
                "warmup_steps": budget // 10, "dataset_dir": str(data), "runs_dir": str(folder)}
    return ConfigWorkflow(config_file=files, workflow_type="train", logging_file=False, **options)


def scored(table: Table, workflow: ConfigWorkflow, folder: Path) -> dict[str, float]:
    """Means over the validation loader's patches, which the caller has set to the test split."""
    workflow.initialize()
    network = load_weights(workflow.parser.get_parsed_content("network_def"), folder / table.stage / WEIGHTS).eval()
    device = workflow.parser.get_parsed_content("device")
    prepare, infer = (workflow.parser.get_parsed_content(f"validate::{part}") for part in ("prepare_batch", "inferer"))
    figures: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for batch in workflow.parser.get_parsed_content("validate::loader"):
            inputs, target, others, _ = prepare(batch, device)
            for name, values in table.score(infer(inputs, network.to(device), *others), target).items():
                figures.setdefault(name, []).append(values.cpu())
    return {name: round(float(torch.cat(values).nanmean()), 4) for name, values in figures.items()}


def reproduce(number: int, data: Path, runs: Path, budget: int, overlays: list[str], patches: int,
              **options: Any) -> dict[str, dict[str, float | None]]:
    """Train and score every row; the results so far are written after each."""
    table, results = TABLES[number], {}
    for row, title in table.rows.items():
        folder = runs / f"table_{number}_{budget}_steps" / row
        training = row_workflow(number, row, data, folder, budget, overlays, **options)
        training.initialize()
        training.run()
        test = {"val_patches": patches, "val_fields#data#split": "test"}
        figures = scored(table, row_workflow(number, row, data, folder, budget, overlays, **options, **test), folder)
        not_learned = UNTRAINED.get(row, ()) if number == 6 else ()
        results[title] = {name: None if name in not_learned else value for name, value in figures.items()}
        write(number, budget, results, runs)
    return results


def write(number: int, budget: int, results: dict[str, dict[str, float | None]], runs: Path) -> None:
    """`table_N.json` and `table_N.md`."""
    names = list(next(iter(results.values())))
    lines = [f"| row | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {row} | {' | '.join('' if figures[name] is None else f'{figures[name]:.4g}' for name in names)} |"
              for row, figures in results.items()]
    record = json.dumps({"table": number, "steps": budget, "rows": results}, indent=1, ensure_ascii=False)
    for name, text in ((f"table_{number}.json", record), (f"table_{number}.md", "\n".join(lines))):
        temporary = runs / f"{name}.tmp"
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(runs / name)


def main() -> None:
    """Parse the line above and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=int, choices=sorted(TABLES), required=True, help="of the paper")
    parser.add_argument("--data", type=Path, required=True, help="folder of sharp fields")
    parser.add_argument("--budget", type=int, required=True, help="training steps of each row")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "reproduce", help="folder of results")
    parser.add_argument("--overlays", nargs="*", default=["compact"], help="configs below the row's (default compact)")
    parser.add_argument("--weights", default="models/model.pt", help="of the frozen parts; none leaves them untrained")
    parser.add_argument("--patches", type=int, default=256, help="of the test split, scored")
    known = parser.parse_args()
    if known.budget < 1:
        parser.error(f"--budget must be at least 1 step, got {known.budget}.")
    weights = None if known.weights == "none" else str((ROOT / known.weights).resolve())
    frozen = {f"{part}_weights": weights for part in ("estimator", "restorer", "p_former")}
    data, runs = known.data.resolve(), known.runs.resolve()
    os.chdir(ROOT)  # MONAI runs a bundle from its root
    reproduce(known.table, data, runs, known.budget, known.overlays, known.patches, **frozen)
    print((runs / f"table_{known.table}.md").read_text())


if __name__ == "__main__":
    main()
