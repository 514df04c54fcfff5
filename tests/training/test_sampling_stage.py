"""Stage 1c: whether a camera oversamples, read from spectra."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = [f"configs/{name}.json" for name in ("train_defocus", "smoke", "sampling")]


def test_the_reader_learns_from_patches_simulated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulation is nearly all of the time: the second epoch must see what the first one kept."""
    monkeypatch.chdir(ROOT)
    workflow = ConfigWorkflow(
        config_file=FILES, workflow_type="train", logging_file=False, runs_dir=str(tmp_path), start_weights=None,
        device="$torch.device('cpu')", patch_px=64, defocus_batch_size=2, defocus_epochs=2, defocus_epoch_length=3,
        val_patches=2, val_interval=1, standard_share=0.0, oversampling=[2.0, 2.0])
    workflow.initialize()
    sampling = workflow.parser.get_parsed_content("sampling")
    before = {name: value.clone() for name, value in sampling.state_dict().items()}
    workflow.run()
    after = torch.load(tmp_path / "sampling" / "network.pt", weights_only=True)
    assert after.keys() == before.keys()
    assert {"reader.1.weight", "reader.7.bias"} <= {name for name in after if not after[name].equal(before[name])}
    kept = workflow.parser.get_parsed_content("train::prepare_batch").kept
    assert len(kept) == 3
    for seen, target, *_ in kept.values():
        assert seen.shape == (2, sampling.spectrum.width // 2) and target.tolist() == [[1.0], [1.0]]
