"""The chain on tiles."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
from torch import Tensor, nn

from bundle.conventions import CONTRAST, DEFOCUS_UM, IMAGE, LABEL, from_uint8, to_uint8
from bundle.optics.binning import binned, unbinned
from bundle.p_diffusion.denoiser import Denoiser
from bundle.p_diffusion.inferer import ResidualShiftInferer
from bundle.p_diffusion.schedule import ResidualShiftScheduler
from bundle.p_former.bands import BandGains
from bundle.p_former.network import PFormer
from bundle.prompts.compact_encoder import CompactEncoder
from bundle.prompts.defocus import DefocusEstimator
from bundle.prompts.pathology import PromptRestorer
from bundle.prompts.prompter import Prompter
from bundle.restoration import BinnedEstimator, TileRestorer
from bundle.training.batches import BandBatch, PDiffusionBatch, RecordedDefocus


def restorer(**options: object) -> TileRestorer:
    torch.manual_seed(0)
    estimator = DefocusEstimator((1, 1, 1, 1), (8, 8, 8, 8))
    prompter = Prompter(estimator, CompactEncoder(16, 1, 4), PromptRestorer(16, 8, 1, 4))
    p_former = PFormer(8, (1, 1, 1, 1), 1, (1, 1, 1, 1), prompt_width=16)
    nn.init.normal_(p_former.output.weight, std=0.05)  # it starts at zero
    denoiser = Denoiser((16, 32), (False, True), 1, 16, 8, norm_groups=8, head_channels=16)
    for parameter in denoiser.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    inferer = ResidualShiftInferer(ResidualShiftScheduler())
    return TileRestorer(prompter, p_former, denoiser, inferer, **options).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tiles() -> Tensor:
    return torch.rand(3, 3, 45, 70, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_a_tile_does_not_see_its_batch(tiles: Tensor) -> None:
    """The same slide must give the same pixels at any batch size and in any order of its tiles."""
    network, places = restorer(), torch.tensor([[0, 0], [0, 40], [32, 0]])
    together = network(tiles, places)
    for order in ([0], [2, 1], [1]):
        assert torch.equal(network(tiles[order], places[order]), together[order])


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (3, 50), (32, 32), (45, 70)])
def test_tiles_of_any_size_come_back_in_their_size_and_range(size: tuple[int, int]) -> None:
    """Slides end where they end; a stage that adds or loses a pixel shifts all that follows."""
    result = restorer().restore(torch.rand(2, 3, *size))
    for image in (result.restored, result.coarse):
        assert image.shape == (2, 3, *size) and float(image.min()) >= 0 and float(image.max()) <= 1
    assert result.focus_map_um.shape == (2, 1, *size)


@torch.no_grad()
def test_an_in_focus_skip_leaves_pixels_untouched(tiles: Tensor) -> None:
    """In-focus tissue is evidence: not one grey level of it may change."""
    network = restorer(skip_in_focus=True)
    network.in_focus_um = 1e6
    quantised = from_uint8(to_uint8(tiles))
    result = network.restore(quantised)
    assert torch.equal(result.restored, quantised) and torch.equal(result.coarse, quantised)
    network.in_focus_um = 1e-9
    assert not torch.equal(network(quantised), quantised)


@torch.no_grad()
def test_stopping_after_the_p_former_gives_the_coarse_image(tiles: Tensor) -> None:
    """Who asks for no diffusion must get none."""
    whole, coarse = restorer().restore(tiles), restorer(stop_after="p_former").restore(tiles)
    assert torch.equal(coarse.restored, coarse.coarse) and torch.equal(coarse.coarse, whole.coarse)
    assert not torch.allclose(whole.restored, whole.coarse, atol=1e-3)


@torch.no_grad()
def test_colours_keep_their_low_frequencies(tiles: Tensor) -> None:
    """A stain that shifts on the way would be read as another stain."""
    smooth = nn.functional.interpolate(tiles[:1, :, :4, :6], (192, 256), mode="bicubic").clamp(0.1, 0.9)
    drift = {}
    for sigma in (0.0, 16.0):
        network = restorer(colour_sigma_px=sigma, stop_after="p_former")
        tint = torch.tensor([1.1, 0.9, 1.0]).view(3, 1, 1)
        network.p_former.register_forward_hook(lambda _, inputs, output, tint=tint: inputs[0] * tint)
        drift[sigma] = float(nn.functional.avg_pool2d(network(smooth) - smooth, 64).abs().mean())
    assert drift[16.0] < 2 / 255 and drift[0.0] > 3 * drift[16.0]


@torch.no_grad()
def test_colours_are_kept_in_values_to_the_power_that_is_asked_for(tiles: Tensor) -> None:
    """A result of no contrast shows it: its mean is that of the image's values to this power."""
    for gamma in (1.0, 1.5, 2.2):
        network = restorer(colour_gamma=gamma, colour_sigma_px=64.0, stop_after="p_former")
        network.p_former.register_forward_hook(lambda _, inputs, output: torch.full_like(output, 0.5))
        result = network(tiles[:1])
        wanted = tiles[:1].pow(gamma).mean((2, 3)).pow(1 / gamma)
        assert torch.allclose(result.mean((2, 3)), wanted, atol=0.01)
    for name in ("colour_gamma", "binned_colour_gamma"):
        with pytest.raises(ValueError, match=f"^{name} must be positive, got 0"):
            restorer(**{name: 0.0})


@torch.no_grad()
def test_binned_images_have_a_power_of_their_own() -> None:
    """No scanner wrote them: a scanner's curve need not hold there, and nowhere else is anything changed."""
    network = restorer(colour_gamma=2.2, binned_colour_gamma=1.0, colour_sigma_px=256.0)
    network.p_former.register_forward_hook(lambda _, inputs, output: torch.full_like(output, 0.5))
    half_dark = torch.full((1, 3, 128, 128), 0.9)
    half_dark[..., :64] = 0.1
    for binning, mean in ((1, ((0.9**2.2 + 0.1**2.2) / 2) ** (1 / 2.2)), (2, 0.5)):
        result = network.restore(half_dark, binning=binning)
        assert result.coarse.mean() == pytest.approx(mean, abs=0.01)
        assert result.restored.mean() == pytest.approx(mean, abs=0.03)


@torch.no_grad()
def test_bands_come_after_the_colours_and_keep_them(tiles: Tensor) -> None:
    """A step of colours behind them would take back what they gave (decision 9)."""
    network = restorer(stop_after="p_former")
    plain = network(tiles)
    network.bands = lambda image, coarse, defocus: coarse + 0.1  # type: ignore[assignment]
    assert torch.allclose(network(tiles), (plain + 0.1).clamp(0, 1), atol=1e-6)


@torch.no_grad()
def test_a_seed_is_a_result(tiles: Tensor) -> None:
    """Repeatable with the same seed, another sample with another."""
    network = restorer(seed=4)
    first = network(tiles)
    assert torch.equal(first, network(tiles))
    network.seed = 5
    assert not torch.allclose(first, network(tiles), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("size", [(96, 64), (45, 71), (1, 1)])
def test_a_binned_tile_is_the_small_tile_restored_and_enlarged(size: tuple[int, int]) -> None:
    """Where one size is asked for, its user must get the very pixels of a field that was resampled by hand."""
    network, image = restorer(samples=2, binned_sizes=(2,), binned_colour_gamma=None), torch.rand(1, 3, *size)
    place = torch.tensor([[64, 32]])
    result, small = network.restore(image, place, 2), network.restore(binned(image, 2), place // 2)
    assert result.binning == 2 and small.binning == 1
    for name in ("restored", "coarse"):
        wanted = unbinned(getattr(small, name), 2, *size).clamp(0, 1)
        assert torch.allclose(getattr(result, name), wanted, atol=1e-6)
    assert result.spread is not None and result.spread.shape == (1, 1, *size)
    assert result.focus_map_um.shape == (1, 1, *size) and torch.equal(result.defocus_um, small.defocus_um)


@torch.no_grad()
@pytest.mark.parametrize("size", [(96, 64), (45, 71), (3, 50), (1, 1)])
def test_sizes_of_pixels_are_restored_each_for_itself_and_averaged(size: tuple[int, int]) -> None:
    """What the P-former takes for detail at one size only is mostly none; prompts are told by 2 x 2 pixels."""
    image, place = torch.rand(1, 3, *size), torch.tensor([[64, 32]])
    result = restorer(samples=2, binned_colour_gamma=None).restore(image, place, 2)
    each = {b: restorer(samples=2).restore(binned(image, b), place // b) for b in (1, 2, 4)}
    for name in ("restored", "coarse"):
        parts = [unbinned(getattr(one, name), b, *size).clamp(0, 1) for b, one in each.items()]
        assert torch.allclose(getattr(result, name), torch.stack(parts).mean(0), atol=1e-6)
    assert torch.equal(result.defocus_um, each[2].defocus_um)
    assert result.spread is not None and result.spread.shape == (1, 1, *size)
    if size == (96, 64):  # averaging sizes must not make a place look surer than it is
        spreads = [float(one.spread.square().mean()) for one in each.values() if one.spread is not None]
        assert float(result.spread.square().mean()) > 0.7 * sum(spreads) / 3
    for sizes in ((1, 4), (0, 2), ()):
        with pytest.raises(ValueError, match="binned_sizes must be positive and hold 2, got"):
            restorer(binned_sizes=sizes)


@torch.no_grad()
def test_what_is_in_focus_keeps_its_finest_detail_in_a_binned_tile() -> None:
    """Binning throws detail away; where nothing is to be restored the pixels must stay as they came."""
    network, image = restorer(skip_in_focus=True, in_focus_um=1e6), torch.rand(1, 3, 64, 64)
    assert torch.equal(network.restore(image, None, 2).restored, image)


@pytest.mark.parametrize("binning", [0, 3, -1])
def test_binnings_that_nothing_was_measured_with_are_refused(binning: int) -> None:
    """Another factor would silently throw nuclei away."""
    with pytest.raises(ValueError, match="binning must be 1 or 2, got"):
        restorer().restore(torch.rand(1, 3, 32, 32), None, binning)


def test_without_a_reader_no_image_oversamples() -> None:
    """The paper's chain restores every pixel as it is."""
    assert restorer().binning_of([torch.rand(3, 64, 64)]) == 1


@torch.no_grad()
def test_the_estimator_of_a_binned_image_sees_what_the_chain_sees() -> None:
    """Else a slide's plan would go by other distances than its restoration."""
    network, image = restorer(), torch.rand(1, 3, 256, 128)
    seen = BinnedEstimator(network.prompter.estimator, 2).focus_map(image)
    wanted = network.restore(image, None, 2).focus_map_um
    assert seen.shape == wanted.shape == (1, 1, 256, 128) and float((seen - wanted).abs().mean()) < 0.01


def test_what_is_no_batch_of_rgb_tiles_is_refused() -> None:
    """A grey or transposed image would be restored into nonsense."""
    with pytest.raises(ValueError, match=r"must have shape \(B, 3, H, W\), got \(1, 1, 32, 32\)"):
        restorer()(torch.rand(1, 1, 32, 32))


def test_rounding_to_uint8_never_wraps() -> None:
    """254.7 must become 255 and 300 must not become 44."""
    values = torch.tensor([-0.2, 0.0, 0.49 / 255, 254.7 / 255, 1.0, 300 / 255])
    assert to_uint8(values).tolist() == [0, 0, 0, 255, 255, 255]
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.tensor([float("nan")]))


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (45, 70), (96, 160)])
def test_band_gains_change_the_coarse_image_and_what_p_diffusion_starts_from(size: tuple[int, int]) -> None:
    """Both stages and every exported graph must see one and the same coarse image."""
    bands = BandGains(8, frequencies=4, hidden=6)
    nn.init.normal_(bands.reader.last.bias, std=0.02)
    without, network = restorer(), restorer(bands=bands)
    image = torch.rand(1, 3, *size)
    plain, result = without.restore(image), network.restore(image)
    assert result.coarse.shape == image.shape and float(result.coarse.min()) >= 0 and float(result.coarse.max()) <= 1
    if min(size) > 1:
        assert not torch.allclose(result.coarse, plain.coarse, atol=1e-4)
        assert not torch.allclose(result.restored, plain.restored, atol=1e-4)
    if size == (96, 160):
        assert torch.allclose(network.restore_given(image, ()), result.coarse, atol=1e-6)


def test_the_options_of_a_restorer_are_all_that_decides_its_pixels() -> None:
    """Half a slide was finished, an option changed, and the other half would follow it without a word: an unfinished
    job and a finished measurement know each other by these."""
    chosen = {"colour_sigma_px": 8.0, "binned_sizes": (2, 4), "skip_in_focus": True, "seed": 3}
    given = {name: option.default for name, option in inspect.signature(TileRestorer).parameters.items()} | chosen
    for network in ("prompter", "p_former", "denoiser", "inferer", "bands", "sampling"):  # a hash tells their weights
        del given[network]
    del given["samples"]  # the first is the result, however many
    options = restorer(**chosen).options
    assert options == given and json.loads(json.dumps(options))["binned_sizes"] == [2, 4]


def test_training_starts_from_the_coarse_image_that_restoring_shows() -> None:
    """Gains and P-diffusion that learned on other colours than they meet later would undo what is not there."""
    bands = BandGains(8, frequencies=4, hidden=6).eval()
    nn.init.normal_(bands.reader.last.bias, std=0.02)
    options = {"colour_sigma_px": 8.0, "colour_gamma": 1.5}
    without, network = restorer(**options), restorer(bands=bands, **options)
    pixels = torch.randint(0, 256, (1, 3, 128, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    patches = {IMAGE: pixels, LABEL: pixels.flip(-1), DEFOCUS_UM: torch.ones(1), CONTRAST: torch.ones(1),
               "seed": torch.tensor([5])}  # fmt: skip
    with torch.no_grad():
        plain, result = without.restore(from_uint8(pixels)), network.restore(from_uint8(pixels))
        prompt = network.prompter(from_uint8(pixels)).defocus
    stages = {stage: stage(RecordedDefocus(), network.prompter, network.p_former, bands=bands, **options)  # type: ignore[operator]
              for stage in (BandBatch, PDiffusionBatch)}  # fmt: skip
    assert torch.allclose(stages[PDiffusionBatch](patches)[0], result.coarse, atol=1e-6)
    seen, products, *_ = stages[BandBatch](patches)
    assert torch.allclose(seen, bands.seen(plain.coarse, prompt)[..., :-1, :-1], atol=1e-4)
    wanted = bands.products(from_uint8(pixels), plain.coarse, from_uint8(pixels.flip(-1)))
    assert torch.allclose(products, wanted, atol=1e-6)
