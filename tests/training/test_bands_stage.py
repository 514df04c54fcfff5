"""Stage 3c: the gains of bands of detail, behind a frozen P-former."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = [f"configs/{name}.json" for name in ("train_p_former", "smoke", "bands")]


def test_the_gains_learn_and_the_p_former_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of a patch was made by one P-former; if it moved too, every later epoch would learn on old ones."""
    monkeypatch.chdir(ROOT)
    workflow = ConfigWorkflow(
        config_file=FILES, workflow_type="train", logging_file=False, runs_dir=str(tmp_path), start_weights=None,
        device="$torch.device('cpu')", patch_px=64, p_former_batch_size=2, p_former_epochs=2, p_former_epoch_length=2,
        val_patches=2, val_interval=1)
    workflow.initialize()
    p_former, bands = (workflow.parser.get_parsed_content(name) for name in ("p_former", "bands"))
    fixed = {name: value.clone() for name, value in p_former.state_dict().items()}
    before = {name: value.clone() for name, value in bands.state_dict().items()}
    workflow.run()
    assert all(torch.equal(value, fixed[name]) for name, value in p_former.state_dict().items())
    after = torch.load(tmp_path / "bands" / "network.pt", weights_only=True)
    assert after.keys() == before.keys()
    assert {"reader.last.weight", "reader.last.bias"} <= {name for name in after if not after[name].equal(before[name])}
    kept = [workflow.parser.get_parsed_content(f"{part}::prepare_batch").kept for part in ("train", "validate")]
    assert [len(batches) for batches in kept] == [2, 1]
