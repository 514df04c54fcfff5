"""Stage 1b: the estimator's reader of local spectra, behind a frozen backbone."""

from __future__ import annotations

from pathlib import Path

import torch
from monai.bundle import ConfigParser
from monai.transforms import RandomizableTransform

from bundle.training.batches import RecordedDefocus
from tests.training.conftest import ROOT, StageWorkflow

FILES = [f"configs/{name}.json" for name in ("train_defocus", "smoke", "spectrum")]


def test_the_reader_learns_and_the_backbone_stays(tmp_path: Path, stage_workflow: StageWorkflow) -> None:
    """Kept features are those of one backbone; if it moved too, every later epoch would learn on old ones."""
    workflow = stage_workflow("defocus", "spectrum")
    estimator = workflow.parser.get_parsed_content("estimator")
    before = {name: value.clone() for name, value in estimator.state_dict().items()}
    workflow.run()
    after = torch.load(tmp_path / "spectrum" / "network.pt", weights_only=True)
    assert after.keys() == before.keys()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert not {name for name in moved if name.startswith("backbone.")}
    assert {"reader.layers.10.weight", "distance_head.weight", "contrast_head.bias"} <= moved
    # Patches are known by their seeds, and those of both sets are equal: one memory would validate on what was trained.
    kept = [workflow.parser.get_parsed_content(f"{part}::prepare_batch").kept for part in ("train", "validate")]
    assert [len(batches) for batches in kept] == [2, 1]


def test_it_draws_what_decisions_say_and_recorded_planes_take_its_place() -> None:
    """A mistyped key says nothing; where the draws end the distance is read too small; recorded stacks have none."""
    parser = ConfigParser()
    parser.read_config([ROOT / file for file in FILES])
    simulate = parser.get_parsed_content("simulate")
    assert simulate.reach_um == 5.6 and simulate.good_camera_share == 0.6
    shares = {type(each).__name__: each.prob for each in parser.get_parsed_content("augment").transforms
              if isinstance(each, RandomizableTransform)}  # fmt: skip
    assert shares["RandStainMixd"] == 0.5 and shares["RandDetailContrastd"] == 0.15
    assert all(table.reach_um > 5.6 for tables in simulate.tables for table in tables)
    recorded = ConfigParser()
    recorded.read_config([ROOT / file for file in (*FILES[:-1], "configs/focal_stacks.json", FILES[-1])])
    assert isinstance(recorded.get_parsed_content("simulate"), RecordedDefocus)
