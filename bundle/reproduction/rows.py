"""A row of a table: a stage's training with its overlay, and the number of steps as the only budget."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from bundle.data.datalist import is_dataset
from bundle.slides.whole_files import replace_when_done

EPOCH = 50  # steps between checkpoints

Cell = float | str | None  # None: not measured, or not learned


def stage_workflow(stage: str, row: str | None, data: Path, folder: Path, steps: int, overlays: Sequence[str],
                   **options: Any) -> ConfigWorkflow:
    """The training of a stage for a row; run from the bundle's root.

    Args:
        stage: as in configs/train_<stage>.json.
        row: overlay in configs/ablations/, None for none.
        data: folder of sharp fields, or a dataset of `mop prepare`.
        folder: of the row; its `<stage>/` holds the weights.
        steps: of training.
        overlays: configs between the stage's and the row's.
        options: of the config.
    """
    epochs = math.ceil(steps / EPOCH)
    names = [f"train_{stage}", *overlays, *(["focal_stacks"] if is_dataset(data) else [])]
    names += [f"ablations/{row}"] if row else []
    # A row is scored with its last weights: a long validation would only cost time, most of all with 100 steps a patch.
    options = {"val_patches": 4} | options
    options |= {f"{stage}_epochs": epochs, f"{stage}_epoch_length": math.ceil(steps / epochs), "val_interval": epochs,
                "warmup_steps": steps // 10, "schedule_warmup": steps // 10,  # a preset's own might outlast the row
                "dataset_dir": str(data), "runs_dir": str(folder)}
    return ConfigWorkflow(config_file=[f"configs/{name}.json" for name in names], workflow_type="train",
                          logging_file=False, **options)


def on_test_split(data: Path, patches: int) -> dict[str, Any]:
    """Options that make a stage's validation loader draw patches of the test split."""
    place = {"val_fields#section": "testing"} if is_dataset(data) else {"val_fields#data#split": "test"}
    return {"val_patches": patches, **place}


def write_table(runs: Path, number: int, rows: Mapping[str, Mapping[str, Cell]], facts: Mapping[str, Any]) -> Path:
    """`table_N.json` and `table_N.md`, of the rows that there are so far; the latter's path."""
    names = list(next(iter(rows.values())))
    lines = [f"| row | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {row} | {' | '.join(_text(figures.get(name)) for name in names)} |" for row, figures in rows.items()]
    record = json.dumps({"table": number, **facts, "rows": rows}, indent=1, ensure_ascii=False)
    for name, text in ((f"table_{number}.json", record), (f"table_{number}.md", "\n".join(lines))):
        with replace_when_done(runs / name, overwrite=True) as file:
            file.write((text + "\n").encode("utf-8"))
    return runs / f"table_{number}.md"


def _text(figure: Cell) -> str:
    return "" if figure is None else figure if isinstance(figure, str) else f"{figure:.4g}"
