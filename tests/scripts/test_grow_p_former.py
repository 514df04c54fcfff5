"""A larger P-former from the shipped one."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from bundle.weights import load_weights

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_shipped_p_former_gets_twice_its_channels(script: ModuleType, tmp_path: Path) -> None:
    """Training begins where the shipped weights ended, at a size that can learn more."""
    assert script.main([str(ROOT / "models" / "model.pt"), str(tmp_path / "wide.pt"), "--twice"]) == 0
    shipped = torch.load(ROOT / "models" / "model.pt", weights_only=True)["p_former.patch_embed.weight"].float()
    wide = torch.load(tmp_path / "wide.pt", weights_only=True)["patch_embed.weight"]
    assert torch.equal(wide, shipped.repeat_interleave(2, 0))


def test_what_holds_no_p_former_is_refused(script: ModuleType, tmp_path: Path,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence, and nothing written."""
    torch.save({"other.weight": torch.zeros(2)}, tmp_path / "other.pt")
    assert script.main([str(tmp_path / "other.pt"), str(tmp_path / "wide.pt"), "--twice"]) == 1
    assert "must hold a P-former" in capsys.readouterr().err and not (tmp_path / "wide.pt").exists()


def test_the_shipped_p_former_gets_more_blocks(script: ModuleType, tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    """Fewer than it has would be another network."""
    weights = torch.load(ROOT / "models" / "model.pt", weights_only=True)
    more = [count + 1 for count in script.size_of(weights, script.PART).blocks]
    grow = [str(ROOT / "models" / "model.pt"), str(tmp_path / "deep.pt"), "--blocks"]
    assert script.main([*grow, *map(str, more)]) == 0
    assert f"blocks {more}" in capsys.readouterr().out
    deep = torch.load(tmp_path / "deep.pt", weights_only=True)
    assert torch.equal(deep["output.weight"], weights["p_former.output.weight"].float())
    assert not deep[f"encoders.3.{more[3] - 1}.ffn.project_out.weight"].any()
    assert script.main([str(tmp_path / "deep.pt"), str(tmp_path / "flat.pt"), "--blocks", "1", "1", "1", "1"]) == 1
    assert "all blocks" in capsys.readouterr().err and not (tmp_path / "flat.pt").exists()


def test_the_shipped_p_former_gets_more_refinement(script: ModuleType, tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    """Blocks behind the decoder, at the finest level; the levels stay as they are, and the function, too."""
    weights = torch.load(ROOT / "models" / "model.pt", weights_only=True)
    before = script.size_of(weights, script.PART)
    more = before.refinement + 1
    assert script.main([str(ROOT / "models" / "model.pt"), str(tmp_path / "deep.pt"), "--refinement", str(more)]) == 0
    assert f"blocks {before.blocks}, refinement {more}" in capsys.readouterr().out
    deep = torch.load(tmp_path / "deep.pt", weights_only=True)
    assert not deep[f"refinement.{more - 1}.attn.project_out.weight"].any()
    grown, small = script.p_former(script.size_of(deep, ""), ["compact"]), script.p_former(before, ["compact"])
    grown.load_state_dict(deep)
    load_weights(small, ROOT / "models" / "model.pt", script.PART)
    generator = torch.Generator().manual_seed(0)
    image, prompt = torch.rand(1, 3, 64, 64, generator=generator), torch.rand(1, 4, 128, generator=generator)
    with torch.no_grad():
        assert torch.equal(grown(image, prompt), small(image, prompt))
    both = [str(tmp_path / "deep.pt"), str(tmp_path / "both.pt"), "--blocks", *map(str, before.blocks[:3])]
    assert script.main([*both, str(before.blocks[3] + 1), "--refinement", str(more + 1)]) == 0
    assert f"{before.blocks[3] + 1}], refinement {more + 1}" in capsys.readouterr().out
    assert script.main([str(tmp_path / "deep.pt"), str(tmp_path / "flat.pt"), "--refinement", "0"]) == 1
    assert "all blocks" in capsys.readouterr().err and not (tmp_path / "flat.pt").exists()


def test_one_way_of_growing_must_be_named(script: ModuleType, tmp_path: Path,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    """Twice the channels and more blocks are two runs; neither is none."""
    for chosen in ([], ["--twice", "--refinement", "2"]):
        with pytest.raises(SystemExit, match="2"):
            script.main([str(ROOT / "models" / "model.pt"), str(tmp_path / "grown.pt"), *chosen])
        assert "give either --twice alone" in capsys.readouterr().err
    assert not (tmp_path / "grown.pt").exists()
