"""What is replaced in the shipped weights, and what is not."""

import copy
from types import ModuleType

import pytest
import torch
from skimage.data import immunohistochemistry

from bundle.loading import load_tile_restorer
from bundle.optics.camera import smoothed
from bundle.restoration import Restoration, TileRestorer


@pytest.fixture(scope="module")
def shipped() -> TileRestorer:
    return load_tile_restorer().requires_grad_(False)


def restored(network: TileRestorer) -> Restoration:
    """A blurred corner of scikit-image's colon section."""
    section = torch.from_numpy(immunohistochemistry()[:64, :64].copy()).permute(2, 0, 1)[None].float() / 255
    return network.restore(smoothed(section, 1.5))


def test_every_part_counts_and_stays_in_its_stage(script: ModuleType, shipped: TileRestorer) -> None:
    """A replacement without effect would report a part as useless; one that leaked would report two parts as one."""
    before = restored(shipped)
    for name, replace in script.PARTS.items():
        network = copy.deepcopy(shipped)
        replace(network)
        after = restored(network)
        coarse_stays, restored_stays = (torch.equal(getattr(before, stage), getattr(after, stage))
                                        for stage in ("coarse", "restored"))
        assert coarse_stays == (name == "as shipped" or "P-diffusion" in name), name
        assert restored_stays == (name == "as shipped"), name
    assert torch.equal(restored(shipped).restored, before.restored)  # the shipped one was never touched


def test_fields_that_are_not_there_are_one_sentence(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """A stack tells a user nothing about the folder that was mistyped."""
    assert script.main(["nowhere"]) == 1
    assert capsys.readouterr().err == "measure_parts.py: the fields must be a folder, not found: nowhere.\n"
    assert script.main(["nowhere", "--every", "0"]) == 1
    assert "--every must be 1 or more, got 0" in capsys.readouterr().err
