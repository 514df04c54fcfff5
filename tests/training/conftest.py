"""What the tests of overlay stages share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow

ROOT = Path(__file__).resolve().parent.parent.parent
StageWorkflow = Callable[..., ConfigWorkflow]


@pytest.fixture
def stage_workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageWorkflow:
    """The initialized workflow of a stage and its overlay, at the smallest size; it writes into tmp_path."""
    monkeypatch.chdir(ROOT)

    def made(stage: str, overlay: str, **options: object) -> ConfigWorkflow:
        files = [f"configs/{name}.json" for name in (f"train_{stage}", "smoke", overlay)]
        workflow = ConfigWorkflow(
            config_file=files, workflow_type="train", logging_file=False, runs_dir=str(tmp_path), start_weights=None,
            device="$torch.device('cpu')", patch_px=64, val_patches=2, val_interval=1,
            **{f"{stage}_batch_size": 2, f"{stage}_epochs": 2, f"{stage}_epoch_length": 2} | options)
        workflow.initialize()
        return workflow

    return made
