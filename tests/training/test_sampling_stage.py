"""Stage 1c: whether a camera oversamples, read from spectra."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.training.conftest import StageWorkflow


def test_the_reader_learns_from_patches_simulated_once(tmp_path: Path, stage_workflow: StageWorkflow) -> None:
    """Simulation is nearly all of the time: the second epoch must see what the first one kept."""
    workflow = stage_workflow("defocus", "sampling", defocus_epoch_length=3, standard_share=0.0,
                              oversampling=[2.0, 2.0])
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
