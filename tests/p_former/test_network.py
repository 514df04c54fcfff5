"""The P-former as a whole."""

from __future__ import annotations

import pytest
import torch

from bundle.p_former.blocks import Mdta
from bundle.p_former.network import PFormer
from bundle.p_former.restormer import load_restormer

TINY = {"dim": 8, "blocks": (1, 1, 1, 1), "refinement_blocks": 1, "heads": (1, 2, 2, 4), "prompt_width": 6}


def tiny(**options: object) -> PFormer:
    torch.manual_seed(2)
    network = PFormer(**{**TINY, **options}).eval()  # type: ignore[arg-type]
    torch.nn.init.normal_(network.output.weight, std=0.1)  # it starts at zero
    return network


def published(network: PFormer) -> dict[str, torch.Tensor]:
    """A state dict of the published naming, made of random values."""
    names: dict[str, torch.Tensor] = {}
    for key, value in network.state_dict().items():
        parts = key.split(".")
        rest = ".".join(parts[2:])
        index = int(parts[1]) if parts[1].isdigit() else 0
        head = {"encoders": "latent" if index == 3 else f"encoder_level{index + 1}",
                "decoders": f"decoder_level{index + 1}", "downs": f"down{index + 1}_{index + 2}",
                "ups": f"up{index + 2}_{index + 1}", "reduces": f"reduce_chan_level{index + 2}"}.get(parts[0])
        name = f"{head}.{rest}" if head else key.replace("patch_embed.", "patch_embed.proj.")
        name = name.replace("norm1.", "norm1.body.").replace("norm2.", "norm2.body.")
        if name.endswith("ffn.sub_experts"):
            continue
        if name.endswith("ffn.main_expert.weight"):
            shape = (2 * value.shape[0], *value.shape[1:])
            names[name.replace("main_expert", "dwconv")] = torch.randn(shape) * 0.2
        elif ".router." not in name:
            names[name] = torch.randn(value.shape) * 0.2 + (1.0 if "norm" in name and "weight" in name else 0.0)
    return names


def test_the_paper_size_without_experts_has_restormers_parameters() -> None:
    """26,126,644 is Restormer's published size: one parameter more or less is another architecture."""
    with torch.device("meta"):
        network = PFormer(experts=0, combine="product")
    assert sum(parameter.numel() for parameter in network.parameters()) == 26_126_644


def test_a_tile_does_not_see_its_batch() -> None:
    """A tile that changed with its neighbours in the batch would change with the batch size."""
    network = tiny()
    images, prompts = torch.rand(3, 3, 24, 40), torch.randn(3, 4, 6)
    together = network(images, prompts)
    alone = torch.cat([network(images[i:i + 1], prompts[i:i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_an_untrained_network_returns_its_input() -> None:
    """Without the residual a network must learn to copy, and in-focus tissue would suffer."""
    image, prompt = torch.rand(1, 3, 16, 24), torch.randn(1, 4, 6)
    assert torch.equal(PFormer(**TINY)(image, prompt), image)  # type: ignore[arg-type]
    assert not torch.equal(tiny()(image, prompt), image)


def test_a_temperature_other_than_one_changes_attention_and_learns() -> None:
    """MONAI's flash path drops this gradient; here it must arrive."""
    attention = Mdta(8, 2)
    x = torch.randn(1, 8, 6, 10)
    plain = attention(x)
    torch.nn.init.constant_(attention.temperature, 3.0)
    assert not torch.allclose(attention(x), plain, atol=1e-6)
    attention(x).square().sum().backward()
    assert attention.temperature.grad is not None and attention.temperature.grad.abs().min() > 0


def test_a_size_that_does_not_divide_is_refused_with_the_rule() -> None:
    """Silent cropping would lose tissue at the border."""
    with pytest.raises(ValueError, match=r"multiples of 8, got \(20, 24\)"):
        tiny()(torch.rand(1, 3, 20, 24), torch.randn(1, 4, 6))


def test_a_published_restormer_loads_into_every_shared_parameter() -> None:
    """A user who fine-tunes from published weights must really start from them."""
    network = tiny(combine="product")
    weights = published(network)
    absent = load_restormer(network, {"params": weights})
    assert absent and all(".router." in name for name in absent)
    assert torch.equal(network.encoders[3][0].attn.qkv.weight, weights["latent.0.attn.qkv.weight"])
    assert torch.equal(network.ups[0].body[0].weight, weights["up2_1.body.0.weight"])


def test_experts_that_start_from_a_restormer_are_that_restormer() -> None:
    """Gates sum to one, so equal experts and GDFN's product leave the published function as it was."""
    plain, mixed = tiny(experts=0, combine="product"), tiny(combine="product")
    weights = published(plain)
    load_restormer(plain, weights)
    load_restormer(mixed, weights)
    image, prompt = torch.rand(2, 3, 16, 24).double(), torch.randn(2, 4, 6).double()
    assert torch.allclose(plain.double()(image, prompt), mixed.double()(image, prompt), rtol=1e-9)


@pytest.mark.parametrize("spoil", ["extra", "missing", "shape"])
def test_a_checkpoint_of_another_network_is_refused(spoil: str) -> None:
    """Half-loaded weights restore garbage that looks like tissue."""
    weights = published(tiny())
    if spoil == "extra":
        weights["head.weight"] = torch.zeros(1)
    if spoil == "missing":
        del weights["output.weight"]
    if spoil == "shape":
        weights["output.weight"] = torch.zeros(1, 1, 3, 3)
    with pytest.raises(ValueError, match="the Restormer checkpoint"):
        load_restormer(tiny(), weights)


def test_the_self_ensemble_does_not_know_rows_from_columns() -> None:
    """Tissue has no up and down: with the mean of both views a tile that lies on its side gets the same pixels."""
    image, prompt = torch.rand(1, 3, 24, 40), torch.randn(1, 4, 6)
    swapped = image.transpose(-2, -1)
    both, one = tiny(self_ensemble=True), tiny()
    assert torch.equal(both(swapped, prompt), both(image, prompt).transpose(-2, -1))
    assert not torch.allclose(one(swapped, prompt), one(image, prompt).transpose(-2, -1), atol=1e-3)


def test_training_sees_one_view() -> None:
    """The gradient of a mean of two views costs twice; evaluation alone takes it."""
    image, prompt = torch.rand(1, 3, 24, 40), torch.randn(1, 4, 6)
    both, one = tiny(self_ensemble=True), tiny()
    assert torch.equal(both.train()(image, prompt), one(image, prompt))
    assert not torch.allclose(both.eval()(image, prompt), one(image, prompt), atol=1e-3)


def test_a_silent_channel_has_no_infinite_gradient() -> None:
    """Attention divides by norms along the pixels; a channel of zeros, as a grown block begins with, has none."""
    attention = Mdta(4, 2)
    torch.nn.init.zeros_(attention.qkv.weight)
    attention(torch.randn(1, 4, 6, 5)).sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in attention.parameters() if weight.grad is not None)
