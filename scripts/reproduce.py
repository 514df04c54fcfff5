"""python scripts/reproduce.py --table 4 --data FIELDS --steps 1000

Trains every row of one of the paper's tables with the same small budget and scores it. Writes `<runs>/table_N.json`
and `table_N.md`; docs/reproduce.md puts the figures beside the paper's. Killed, the same line goes on.

    --table 1, 2    methods, on whole fields: mean ± deviation over slides and planes. --rows chooses some of them,
                    --restored NAME=FOLDER adds a method by its images, --write-inputs FOLDER gives it the planes
    --table 3       classification: --labels CSV --sharp FOLDER --restored NAME=FOLDER …; rows of table 1 restore the
                    tiles of a folder with --low FOLDER --data FIELDS --row-steps N --rows …
    --table 4, 5, 6 ablations, on random patches of the test split, the same for all rows
    --table 7       encoders: --encoder NAME=WEIGHTS …, or compact; also figures 5 and 6
    --table 8       seconds of each part

FIELDS is a folder of sharp fields (defocus is simulated) or a dataset of `mop prepare`. A row is a config in
configs/ablations/ over the stage's config and configs/compact.json; frozen parts are those of models/model.pt.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigWorkflow
from torch import Tensor

from bundle.evaluation.origin import commit, hardware
from bundle.messages import as_program
from bundle.reproduction.methods import (
    METHODS,
    ROWS,
    Method,
    MethodOnFields,
    Protocol,
    Untouched,
    assembled,
    scored,
    write_planes,
)
from bundle.reproduction.rows import Cell, on_test_split, stage_workflow, write_table
from bundle.training.checkpoints import WEIGHTS
from bundle.training.metrics import psnr, ssim
from bundle.weights import load_weights

ROOT = Path(__file__).resolve().parent.parent
IN_FOCUS_UM = 0.4  # half a plane: Z-accuracy

Rows = dict[str, dict[str, Cell]]


class Table(NamedTuple):
    """An ablation of the paper."""

    stage: str  # whose training is repeated
    rows: dict[str, str]  # end of the overlay's name -> the paper's name of the row
    score: Callable[[Any, Tensor], dict[str, Tensor]]  # figures of each patch, (B,)
    untouched: str | None  # row of what the network is given, as it is


class Budget(NamedTuple):
    """What every row of a table shares."""

    data: Path
    runs: Path
    steps: int
    overlays: list[str]
    options: dict[str, Any]  # of all configs
    origin: dict[str, Any]  # where the figures come from, written beside them

    def place(self, number: int) -> Path:
        """Folder of a table's rows: a row of another budget is another row."""
        patch_px = self.options.get("patch_px")
        return self.runs / f"table_{number}_{self.steps}_steps{f'_{patch_px}_px' if patch_px else ''}"


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
                          "f_pp": "F + P_P", "f_pd_plp": "F + P_D + P_LP", "f_pd_pp": "F + P_D + P_P"}, image_scores,
             "input"),
    5: Table("p_diffusion", {"none": "-", "pp": "P_P", "ple": "P_LE", "pe": "P_E", "pp_pe": "P_P + P_E"}, image_scores,
             "coarse image"),
    6: Table("defocus", {"contrast": "contrast", "distance": "distance", "both": "contrast + distance"},
             estimate_scores, None),
}
# What a row of table 6 has not learned is no result.
UNTRAINED = {"contrast": ("MAE(distance), µm", "Z-accuracy"), "distance": ("MAE(contrast)",)}


def trained(stage: str, row: str | None, folder: Path, budget: Budget, **options: Any) -> ConfigWorkflow:
    """A row's training, run to its end."""
    workflow = stage_workflow(stage, row, budget.data, folder, budget.steps, budget.overlays, **budget.options,
                              **options)
    workflow.initialize()
    workflow.run()
    return workflow


def patch_scores(table: Table, workflow: ConfigWorkflow, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Means over the validation loader's patches, which the caller has set to the test split: of the row, untouched."""
    workflow.initialize()
    network = load_weights(workflow.parser.get_parsed_content("network_def"), folder / table.stage / WEIGHTS).eval()
    device = workflow.parser.get_parsed_content("device")
    prepare, infer = (workflow.parser.get_parsed_content(f"validate::{part}") for part in ("prepare_batch", "inferer"))
    figures: list[dict[str, Tensor]] = []
    untouched: list[dict[str, Tensor]] = []
    with torch.no_grad():
        for batch in workflow.parser.get_parsed_content("validate::loader"):
            inputs, target, others, _ = prepare(batch, device)
            figures.append(table.score(infer(inputs, network.to(device), *others), target))
            untouched += [table.score(inputs, target)] if table.untouched else []
    return _means(figures), _means(untouched)


def _means(batches: list[dict[str, Tensor]]) -> dict[str, float]:
    return {name: round(float(torch.cat([batch[name].cpu() for batch in batches]).nanmean()), 4)
            for name in (batches[0] if batches else {})}


def ablation(number: int, budget: Budget, patches: int) -> Rows:
    """Tables 4, 5 and 6; the results so far are written after each row."""
    table, results = TABLES[number], Rows()
    for row, title in table.rows.items():
        folder, overlay = budget.place(number) / row, f"table{number}_{row}"
        trained(table.stage, overlay, folder, budget)
        options = budget.options | on_test_split(budget.data, patches)
        figures, untouched = patch_scores(table, stage_workflow(table.stage, overlay, budget.data, folder, budget.steps,
                                                                budget.overlays, **options), folder)
        if table.untouched:
            results.setdefault(table.untouched, dict(untouched))
        not_learned = UNTRAINED.get(row, ()) if number == 6 else ()
        results[title] = {name: None if name in not_learned else value for name, value in figures.items()}
        write_table(budget.runs, number, results, budget.origin | {"patches": patches})
    return results


def train_method(method: Method, folder: Path, budget: Budget, **options: Any) -> MethodOnFields:
    """A method trained in `folder`, its coarse stage in the folder beside it, ready to restore fields."""
    if method.after:
        coarse, beside = METHODS[method.after], folder.parent / method.after
        trained(coarse.stage, coarse.overlay, beside, budget)  # at once over where it is done
        options["p_former_weights"] = str(beside / coarse.stage / WEIGHTS)
    budget = budget._replace(options=budget.options | options)
    parser = trained(method.stage, method.overlay, folder, budget).parser
    network = assembled(parser, method.stage, folder / method.stage / WEIGHTS)
    return MethodOnFields(method.title, network, folder, parser.get_parsed_content("device"))


def comparison(number: int, names: list[str], budget: Budget, protocol: Protocol, given: dict[str, Path]) -> Rows:
    """Tables 1 and 2: given images first, then every row that is to be trained."""
    place = budget.place(number)
    results: Rows = {}
    if given or not names:
        results |= scored(protocol, Untouched(), place / "given", given)
        write_table(budget.runs, number, results, budget.origin)
    for name in names:
        results |= scored(protocol, train_method(METHODS[name], place / name, budget), place / name / "evaluation")
        write_table(budget.runs, number, results, budget.origin)
    return results


class Classified(NamedTuple):
    """What table 3 asks about."""

    labels: Path
    sharp: Path
    given: dict[str, Path]  # method -> its restored tiles
    low: Path | None = None  # defocused tiles for the methods below to restore
    names: Sequence[str] = ()  # rows of table 1, trained with a budget of their own


def classification(asked: Classified, budget: Budget, of_a_row: Budget) -> Rows:
    """Table 3; `of_a_row` is the budget of the methods of table 1, whose rows are gone on with where they are there."""
    from bundle.reproduction.classification import Recipe, asked_about, classify, load_tiles, read_labels

    tiles = read_labels(asked.labels)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sharp = load_tiles(tiles, asked.sharp)  # before hours of training: a missing tile is told at once
    methods = {name: load_tiles(asked_about(tiles), folder) for name, folder in asked.given.items()}
    if asked.low:
        defocused = load_tiles(asked_about(tiles), asked.low)
        for name in asked.names:
            method = train_method(METHODS[name], of_a_row.place(1) / name, of_a_row)
            methods[method.title] = method.restored_tiles(defocused)
    recipe, folder = Recipe(budget.steps), budget.runs / "table_3"
    scores = classify(tiles, sharp, methods, recipe, folder, device)
    results: Rows = {name: dict(score._asdict()) for name, score in scores.items()}
    write_table(budget.runs, 3, results, budget.origin | {"tiles": len(asked_about(tiles))})
    return results


def encoders(chosen: dict[str, str], budget: Budget, protocol: Protocol, patches: int) -> Rows:
    """Table 7: a prompt restorer and a P-diffusion that sees P_P alone, for each encoder; and figures 5 and 6."""
    from bundle.prompts.encoder_cards import ENCODERS
    from bundle.reproduction.prompt_space import prompt_space, write_space

    place, results = budget.place(7), Rows()
    for name, weights in chosen.items():
        own: dict[str, Any] = {"restorer_weights": None}
        if name != "compact":
            own |= {"encoder_width": ENCODERS[name].width, "encoder": {
                "_target_": "bundle.prompts.foundation.FoundationEncoder", "name": name, "weights": weights}}
        each = budget._replace(options=budget.options | own)
        folder = place / name / "p_diffusion_with_p_p"
        trained("prompt", None, folder, each)
        own["restorer_weights"] = str(folder / "prompt" / WEIGHTS)
        each = budget._replace(options=budget.options | own)
        method = Method(name, "p_diffusion", "table7", "restormer")
        restorer = train_method(method, folder, each)
        results |= scored(protocol, restorer, folder / "evaluation")
        write_table(budget.runs, 7, results, budget.origin)
        # Figures 5 and 6 look at the same patches with the parts that were just trained.
        parser = stage_workflow("p_diffusion", "table7", budget.data, folder, budget.steps, budget.overlays,
                                **each.options, **on_test_split(budget.data, patches)).parser
        parts = (parser.get_parsed_content(part) for part in ("validate::loader", "simulate"))
        network = restorer.network
        write_space(prompt_space(*parts, network.prompter, network.p_former, restorer.device), place / name, name)
    return results


def runtime(runs: Path, origin: dict[str, Any]) -> Rows:
    """Table 8: what scripts/benchmark.py measures here."""
    runs.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, str(ROOT / "scripts" / "benchmark.py"), "--json", str(runs / "benchmark.json")],
                   check=True, cwd=ROOT)
    costs = json.loads((runs / "benchmark.json").read_text(encoding="utf-8"))
    rows: Rows = {cost["part"]: {"seconds per 256 px image": cost["seconds"]} for cost in costs}
    write_table(runs, 8, rows, origin)
    return rows


def named_folders(pairs: list[str]) -> dict[str, Path]:
    """NAME=FOLDER … as a dictionary.

    Raises:
        ValueError: one of them has another form, or a name comes twice.
    """
    named = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if len(named) < len(pairs) or not all(name and folder for name, folder in named.items()):
        raise ValueError(f"every method must be given once as NAME=FOLDER, got {' '.join(pairs)}.")
    return {name: Path(folder).resolve() for name, folder in named.items()}


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, every rule of it checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=int, choices=range(1, 9), required=True, help="of the paper")
    parser.add_argument("--data", type=Path, help="folder of sharp fields, or dataset of mop prepare")
    parser.add_argument("--steps", "--budget", type=int, default=0, help="training steps of each row")
    parser.add_argument("--rows", nargs="*", choices=METHODS, help="of tables 1 to 3 (default: none of spandrel's)")
    parser.add_argument("--restored", nargs="*", default=[], metavar="NAME=FOLDER", help="images of other methods")
    parser.add_argument("--write-inputs", type=Path, metavar="FOLDER", help="write the planes to restore, and stop")
    parser.add_argument("--positions-um", type=float, nargs="*", help="planes of tables 1, 2, 7 (default all)")
    parser.add_argument("--crop-px", type=int, default=0, help="centred square of each field that is scored")
    parser.add_argument("--lpips", type=Path, help="folder of LPIPS weights")
    parser.add_argument("--labels", type=Path, help="CSV name,label of table 3")
    parser.add_argument("--sharp", type=Path, help="folder of sharp tiles of table 3")
    parser.add_argument("--low", type=Path, help="folder of defocused tiles, for --rows of table 3 to restore")
    parser.add_argument("--row-steps", type=int, default=0, help="training steps of --rows of table 3")
    parser.add_argument("--encoder", nargs="*", default=["compact"], metavar="NAME=WEIGHTS", help="of table 7")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "reproduce", help="folder of results")
    parser.add_argument("--overlays", nargs="*", default=["compact"], help="configs below the row's (default compact)")
    parser.add_argument("--weights", default="models/model.pt", help="of the frozen parts; none leaves them untrained")
    parser.add_argument("--patch-px", type=int, help="side of the patches that rows learn from and are scored on")
    parser.add_argument("--patches", type=int, default=256, help="of the test split, scored in tables 4 to 7")
    known = parser.parse_args(arguments)
    scores_only = known.write_inputs or (known.restored and known.table in (1, 2))
    if known.table != 8 and not scores_only and known.steps < 1:
        parser.error(f"--steps must be at least 1 step, got {known.steps}.")
    if known.table not in (3, 8) and known.data is None:
        parser.error("--data must name the fields, got none.")
    if known.table == 3 and None in (known.labels, known.sharp):
        parser.error("table 3 needs --labels CSV and --sharp FOLDER, got none.")
    for_rows = [known.low, known.row_steps, *([known.data, known.rows] if known.table == 3 else [])]
    if any(for_rows) and not (known.table == 3 and all(for_rows)):
        parser.error("--rows of table 3 need --low FOLDER, --data FIELDS and --row-steps N, and these need --rows.")
    return known


def origin_of(known: argparse.Namespace, weights: str | None) -> dict[str, Any]:
    """What a figure must be named with: budget, data, weights of the frozen parts, commit and machine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    held = hashlib.sha256(Path(weights).read_bytes()).hexdigest() if weights else None
    rows = {"row_steps": known.row_steps} if known.row_steps else {}
    return rows | {"steps": known.steps, "patch_px": known.patch_px, "data": known.data.name if known.data else None,
            "weights_sha256": held, "commit": commit(ROOT), "hardware": hardware(device)}


def run(known: argparse.Namespace) -> None:
    """Make the table."""
    weights = None if known.weights == "none" else str((ROOT / known.weights).resolve())
    options: dict[str, Any] = {f"{part}_weights": weights for part in ("estimator", "restorer", "p_former")}
    options |= {"patch_px": known.patch_px} if known.patch_px else {}
    runs, given = known.runs.resolve(), named_folders(known.restored)
    data = known.data.resolve() if known.data else Path()
    lpips = known.lpips.resolve() if known.lpips else None
    protocol = Protocol(data, known.positions_um, known.crop_px, lpips)
    origin = origin_of(known, weights)
    budget = Budget(data, runs, known.steps, known.overlays, options, origin)
    places = [path.resolve() if path else None for path in (known.write_inputs, known.labels, known.sharp, known.low)]
    os.chdir(ROOT)  # MONAI runs a bundle from its root
    if places[0]:
        print(f"{write_planes(protocol, places[0])} fields: {places[0]}")
        return
    if known.table in ROWS:
        names = (known.rows or list(ROWS[known.table])) if known.steps else []
        comparison(known.table, names, budget, protocol, given)
    elif known.table == 3:
        assert places[1] and places[2]
        asked = Classified(places[1], places[2], given, places[3], known.rows or ())
        classification(asked, budget, budget._replace(steps=known.row_steps))
    elif known.table in TABLES:
        ablation(known.table, budget, known.patches)
    elif known.table == 7:
        encoders(dict((*pair.split("=", 1), "")[:2] for pair in known.encoder), budget, protocol, known.patches)
    else:
        runtime(runs, origin)
    print((runs / f"table_{known.table}.md").read_text(encoding="utf-8"))


@as_program
def main() -> None:
    """Parse the lines above and run."""
    run(parsed())


if __name__ == "__main__":
    raise SystemExit(main())
