"""Every stage trains on a dataset of mop prepare by one overlay, and goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from tests.data.dataset_files import changed, write_dataset

ROOT = Path(__file__).resolve().parent.parent.parent
STAGES = ["train_encoder", "train_defocus", "train_prompt", "train_p_former", "train_p_diffusion", "train"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("recorded") / "dataset")


@pytest.fixture(autouse=True)
def _at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def options(dataset: Path, runs: Path, **more: Any) -> dict[str, Any]:
    return {"dataset_dir": str(dataset), "runs_dir": str(runs), "device": "$torch.device('cpu')", "patch_px": 32,
            "val_patches": 2, "p_former_refinement": 0, **more}


def files(name: str) -> list[str]:
    return [f"configs/{one}.json" for one in (name, "smoke", "focal_stacks")]


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_is_given_recorded_pairs(name: str, dataset: Path, tmp_path: Path) -> None:
    """An overlay that one stage does not read would let it simulate on, unnoticed."""
    parser = ConfigParser()
    parser.read_config(files(name))
    parser.update(options(dataset, tmp_path))
    overlay = json.loads((ROOT / "configs" / "focal_stacks.json").read_text())
    whole = json.loads((ROOT / "configs" / f"{name}.json").read_text())
    assert set(overlay) - {"_desc_"} <= set(whole)
    for stage in [key for key in whole if key.endswith("stage")] or ["train"]:
        batch = next(iter(parser.get_parsed_content(f"{stage}::loader")))
        prepare = parser.get_parsed_content(f"{stage}::prepare_batch")
        inputs, target, _, _ = prepare(batch, torch.device("cpu"))
        # What enters a network is the pixels as recorded (or its frozen parts' answer to them).
        given = {"DefocusBatch": "image", "PFormerBatch": "image", "EncoderBatch": "label"}.get(type(prepare).__name__)
        if given:
            assert torch.equal(inputs, batch[given].float() / 255)
        if type(prepare).__name__ == "DefocusBatch":
            assert torch.equal(target, torch.stack([batch["defocus_um"], batch["contrast"]], 1).float())
        assert bool(torch.isfinite(inputs).all())


def test_a_stopped_training_on_recorded_pairs_ends_at_the_bits_of_an_unbroken_one(
        dataset: Path, tmp_path: Path) -> None:
    """Nights end early; the weights must not depend on it."""
    for runs, epochs in (("whole", (2,)), ("broken", (1, 2))):
        for last in epochs:
            workflow = ConfigWorkflow(config_file=files("train_p_former"), workflow_type="train", logging_file=False,
                                      **options(dataset, tmp_path / runs, p_former_epochs=last))
            workflow.initialize()
            workflow.run()
    whole, broken = (torch.load(tmp_path / runs / "p_former" / "network.pt") for runs in ("whole", "broken"))
    torch.testing.assert_close(broken, whole, rtol=0, atol=0)


def test_a_leak_ends_the_training_before_it_begins(dataset: Path, tmp_path: Path) -> None:
    """A slide that validates and trains makes every weight look better than it is."""
    (tmp_path / "fields").symlink_to(dataset / "fields")
    (tmp_path / "datalist.json").write_bytes((dataset / "datalist.json").read_bytes())
    changed(tmp_path, lambda held: held["validation"][0].update(slide="A1"))
    parser = ConfigParser()
    parser.read_config(files("train_defocus"))
    parser.update(options(tmp_path, tmp_path / "runs"))
    with pytest.raises(RuntimeError) as told:  # MONAI's; the sentence is its cause
        parser.get_parsed_content("train::trainer")
    cause: BaseException = told.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert str(cause) == "a slide may be in one section only, but A1 is in 'training' and in another."
    assert not (tmp_path / "runs").exists()
