"""Whether a camera oversamples."""

from __future__ import annotations

import pytest
import torch
from skimage.data import immunohistochemistry
from torch import Tensor
from torch.nn import functional

from bundle.conventions import from_uint8
from bundle.loading import load_tile_restorer
from bundle.optics.camera import Camera, record
from bundle.optics.focal_stack import GainTable, simulate_plane
from bundle.optics.pupil import OPTICS_40X
from bundle.prompts.sampling import SamplingReader, binning_of, log2_oversampling_of


class Reads(SamplingReader):
    """Reads what the mean of the tile says."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return image.mean((1, 2, 3)), super().forward(image)[1]


@pytest.fixture(scope="module")
def section() -> Tensor:
    """The colon section, which no training has seen, (3, 512, 512)."""
    return from_uint8(torch.from_numpy(immunohistochemistry()).permute(2, 0, 1).contiguous())


def test_tiles_count_by_their_contrast() -> None:
    """Glass tells nothing: a field whose corner is empty must be read by its tissue."""
    generator = torch.Generator().manual_seed(0)
    tissue = 0.6 + 0.2 * torch.rand(3, 64, 64, generator=generator)
    glass = 0.1 + 0.001 * torch.rand(3, 64, 64, generator=generator)
    reader = Reads(34, 8).eval()
    assert binning_of(reader, [tissue, glass, glass, glass], 0.3) == 2
    assert binning_of(reader, [glass, glass], 0.3) == 1
    assert binning_of(reader, [torch.full((3, 64, 64), 0.9)], 0.3) == 1  # nothing to read
    assert binning_of(reader, [], 0.3) == 1
    assert log2_oversampling_of(reader, [tissue, glass, glass, glass]) == pytest.approx(0.7, abs=0.01)
    assert log2_oversampling_of(reader, [torch.full((3, 64, 64), 0.9)]) == log2_oversampling_of(reader, []) == 0


def test_fine_detail_that_the_colours_share_forbids_binning() -> None:
    """Whatever is read: detail that is there must never be thrown away, not even if it is in one tile alone."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.6 + 0.1 * torch.randn(3, 256, 256, generator=generator)
    tissue = 0.6 + 0.1 * torch.randn(1, 256, 256, generator=generator).expand(3, 256, 256)
    reader = Reads(36, 8).eval()
    assert float(reader(noise[None])[1]) < 0.05 < 0.95 < float(reader(tissue[None])[1])
    assert binning_of(reader, [noise, noise], 0.3) == 2
    assert binning_of(reader, [noise, noise, tissue], 0.3) == 1
    asked = []
    for said, expected in ((0.2, 1), (0.4, 2)):  # in place of what the image reads
        assert binning_of(reader, [noise, noise], 0.3, lambda said=said: said) == expected
        assert binning_of(reader, [noise, tissue], 0.3, lambda: asked.append(1) or 9.0) == 1
    assert not asked  # a whole folder need not be read for an image that has detail to lose
    with pytest.raises(ValueError, match="frequencies must be more than 32, got 32"):
        SamplingReader(32)


def test_what_is_read_does_not_depend_on_the_size() -> None:
    """One image is read in tiles of a network's size, another as it is: the mean over windows must be the same."""
    reader = SamplingReader(36, 4).eval()
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)).tile(1, 1, 3, 3)
    seen = reader.seen(image)
    reading, detail = reader(image)
    assert seen.shape == (1, 6 * 36) and reading.shape == detail.shape == (1,)
    assert torch.isfinite(seen).all()


@torch.inference_mode()
@pytest.mark.parametrize("position_um", [-3.2, 3.2])
def test_the_shipped_reader_tells_an_enlarged_field_from_a_blurred_one(section: Tensor, position_um: float) -> None:
    """Both lack fine detail. A blurred field that is taken for an oversampled one would be restored too coarsely."""
    network, camera, generator = load_tile_restorer(), Camera(jpeg_quality=0), torch.Generator().manual_seed(0)
    plane = simulate_plane(section, position_um, torch.zeros(512, 512), GainTable(OPTICS_40X))[:, 128:384, 128:384]
    assert network.binning_of([record(plane, camera, generator)]) == 1
    enlarged = functional.interpolate(plane[None], scale_factor=2.5, mode="bicubic")[0, :, 192:448, 192:448].clamp(0, 1)
    for full_well in (300.0, 3_000.0):
        assert network.binning_of([record(enlarged, camera._replace(full_well=full_well), generator)]) == 2
    # Blocks of JPEG are shared by the colours: what lies below them cannot be told, so nothing is thrown away.
    assert network.binning_of([record(enlarged, Camera(jpeg_quality=90), generator)]) == 1
