"""Stage 3c: the gains of bands of detail, behind a frozen P-former."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.training.conftest import StageWorkflow


def test_the_gains_learn_and_the_p_former_stays(tmp_path: Path, stage_workflow: StageWorkflow) -> None:
    """What is kept of a patch was made by one P-former; if it moved too, every later epoch would learn on old ones."""
    workflow = stage_workflow("p_former", "bands")
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
