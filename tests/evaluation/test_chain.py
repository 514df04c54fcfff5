"""The chain over a whole field: tiled, told where each tile lies, and blended without a trace."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from bundle.evaluation.chain import ChainOnFields
from bundle.restoration import Restoration


class Mirror(nn.Module):
    """Stands for the network: coarse is the tile, restored is its negative; its tokens are the tile's mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.stop_after, self.options = "p_diffusion", {"seed": 4, "binned_sizes": (1, 2, 4)}
        self.locations: list[list[int]] = []
        self.prompter = SimpleNamespace(
            estimator=lambda tiles: SimpleNamespace(
                defocus_um=tiles.mean((1, 2, 3)), contrast=tiles.amax((1, 2, 3)), prompt=tiles
            ),
            encoder=lambda tiles: tiles.mean((2, 3))[:, None],
            restorer=lambda tokens, prompt: tokens + 0.1,
        )

    def binning_of(self, tiles: Iterable[Tensor], camera: object = None) -> int:
        return 1

    def restore(self, image: Tensor, location: Tensor, binning: int = 1) -> Restoration:
        self.locations += location.tolist()
        flat = torch.zeros(len(image))
        return Restoration(1 - image, image * self.scale, image[:, :1], flat, flat, {})


def chain(folder: Path, **options: object) -> ChainOnFields:
    torch.save({"scale": torch.ones(1)}, folder / "model.pt")
    settings: dict[str, object] = {"tile_px": 64, "overlap_px": 16, "batch": 3}
    return ChainOnFields(Mirror(), folder / "model.pt", **settings | options)  # type: ignore[arg-type]


@pytest.fixture
def image() -> Tensor:
    return torch.rand(3, 100, 150, generator=torch.Generator().manual_seed(0))


def test_tiles_come_back_as_the_field_they_were_cut_from(tmp_path: Path, image: Tensor) -> None:
    """A seam or a swapped stage would be scored as the network's fault."""
    results = chain(tmp_path).restore(image)
    assert list(results) == ["coarse", "restored"]
    torch.testing.assert_close(results["coarse"], image)
    torch.testing.assert_close(results["restored"], 1 - image)


def test_every_tile_is_told_its_place(tmp_path: Path, image: Tensor) -> None:
    """Noise is tied to the place: without it neighbours disagree in their overlap."""
    restorer = chain(tmp_path)
    restorer.restore(image)
    assert restorer.network.locations == [[row, column] for row in (0, 36) for column in (0, 48, 86)]


def test_the_options_of_the_network_are_part_of_the_settings(tmp_path: Path) -> None:
    """Records of another seed or colour rule must not be taken for this network's."""
    assert chain(tmp_path, overlap_px=20).settings == {
        "tile_px": 64, "overlap_px": 20, "binning": None, "seed": 4, "binned_sizes": (1, 2, 4),
    }


def test_a_chain_that_stops_after_the_p_former_has_no_restored_field(tmp_path: Path, image: Tensor) -> None:
    """Its last stage is coarse, whatever the network hands back."""
    restorer = chain(tmp_path)
    restorer.network.stop_after = "p_former"
    assert list(restorer.restore(image)) == ["coarse"]


def test_prompts_are_read_in_batches_and_stay_in_order(tmp_path: Path) -> None:
    """A shuffled estimate would be scored against another tile's depth."""
    tiles = torch.rand(5, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    defocus_um, contrast = chain(tmp_path, batch=2).estimate(tiles)
    torch.testing.assert_close(defocus_um, tiles.mean((1, 2, 3)))
    torch.testing.assert_close(contrast, tiles.amax((1, 2, 3)))
    errors = chain(tmp_path, batch=2).prompt_errors(tiles, tiles)
    assert errors is not None
    torch.testing.assert_close(errors[0], torch.zeros(5))
    torch.testing.assert_close(errors[1], torch.full((5,), 0.01))


def test_an_ablation_without_prompt_restorer_has_no_prompt_errors(tmp_path: Path) -> None:
    """Its ratio would be 1 by construction and read like a result."""
    restorer = chain(tmp_path)
    restorer.network.prompter.restorer = None
    assert restorer.prompt_errors(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)) is None


def test_weights_are_named_by_their_bytes_and_must_fit(tmp_path: Path) -> None:
    """Figures without the weights they belong to cannot be repeated."""
    first = chain(tmp_path).weights_sha256
    assert len(first) == 64
    torch.save({"scale": torch.full((1,), 2.0)}, tmp_path / "model.pt")
    assert ChainOnFields(Mirror(), tmp_path / "model.pt").weights_sha256 != first
    torch.save({"other": torch.ones(1)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="fit"):
        ChainOnFields(Mirror(), tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        ChainOnFields(Mirror(), tmp_path / "absent.pt")
