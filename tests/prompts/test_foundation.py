"""Foundation encoders: the table, the sentences, and the real loading code on small checkpoints made here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bundle.prompts import foundation
from bundle.prompts.encoder_cards import encoder_table
from bundle.prompts.foundation import ENCODERS, EncoderCard, FoundationEncoder

ROOT = Path(__file__).parents[2]

# Millions of parameters as published: a wrong depth, ratio or number of registers changes them.
PUBLISHED_MILLIONS = {
    "prov-gigapath": 1135,
    "uni": 303,
    "uni2-h": 681,
    "conch": 86,
    "virchow2": 631,
    "h-optimus-0": 1135,
    "hibou-b": 86,
    "hibou-l": 304,
    "phikon-v2": 303,
    "plip": 87,
}


def tiny(card: EncoderCard) -> dict[str, Any]:
    """Overrides that keep the family (patch, registers, feed-forward) and shrink the rest."""
    if card.library == "timm":
        return {"img_size": 2 * card.patch_px, "embed_dim": 24, "depth": 2, "num_heads": 2}
    more = {"intermediate_size": 48} if "intermediate_size" in card.arguments else {}
    size = {"image_size": 2 * card.patch_px, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return size | more


def need(card: EncoderCard) -> None:
    pytest.importorskip(card.library)
    pytest.importorskip("safetensors")


def small_network(card: EncoderCard) -> nn.Module:
    network = foundation.build_network(card, {**card.arguments, **tiny(card)})
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return network.eval()


def checkpoint_of(card: EncoderCard, network: nn.Module) -> dict[str, Tensor]:
    """The state as the hub's file holds it: under its prefix, beside parts that are not the image encoder."""
    state = {card.key_prefix + key: value.clone() for key, value in network.state_dict().items()}
    if card.key_prefix:
        state |= {"text_model.embeddings.weight": torch.zeros(3), "logit_scale": torch.zeros(())}
    return state


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_every_encoder_of_the_paper_and_its_rivals_is_in_the_table() -> None:
    """If it fails, a name in a config, the documentation and the code disagree."""
    assert set(ENCODERS) == set(PUBLISHED_MILLIONS)
    for name, card in ENCODERS.items():
        assert card.name == name and card.library in ("timm", "transformers")
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", card.hub_id) and card.files
        assert card.licence and card.access and card.citation
        assert card.input_px % card.patch_px == 0 and card.width % 64 == 0
        registers = card.arguments.get("reg_tokens", card.arguments.get("num_register_tokens", 0))
        assert card.prefix_tokens == 1 + registers
        assert all(0 < value < 1 for value in (*card.mean, *card.std))


def test_the_documentation_shows_the_table_of_the_code() -> None:
    """If it fails, a user asks the wrong people for the wrong file under the wrong licence."""
    assert encoder_table() in (ROOT / "docs" / "foundation_encoders.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("given", [True, False])
def test_missing_weights_give_one_sentence_with_file_hub_and_licence(
    name: str, given: bool, empty_cache: Path, tmp_path: Path
) -> None:
    """If it fails, a run goes on with random weights, or stops without saying what to fetch."""
    card = ENCODERS[name]
    with pytest.raises(FileNotFoundError) as caught:
        FoundationEncoder(name, tmp_path / "absent.bin" if given else None)
    sentence = str(caught.value)
    assert card.hub_id in sentence and card.licence in sentence and card.files[0] in sentence
    assert ("absent.bin is not there" in sentence) == given
    assert "\n" not in sentence and sentence.endswith(".")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    """If it fails, a typing error ends in a KeyError."""
    with pytest.raises(ValueError, match=r"prov-gigapath.*got 'gigapath'"):
        FoundationEncoder("gigapath")


def test_weights_are_found_in_a_folder_and_in_the_hub_cache(empty_cache: Path, tmp_path: Path) -> None:
    """If it fails, whoever has downloaded the weights must search them again by hand."""
    card = ENCODERS["conch"]
    snapshot = empty_cache / "models--MahmoodLab--conch" / "snapshots" / "0123abc"  # the hub's ids ignore case
    snapshot.mkdir(parents=True)
    (snapshot / "pytorch_model.bin").write_bytes(b"x")
    assert foundation.find_weights(card, None) == snapshot / "pytorch_model.bin"
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert foundation.find_weights(card, tmp_path) == tmp_path / "model.safetensors"


@pytest.mark.parametrize("library", ["timm", "torchvision", "transformers"])
def test_a_missing_library_gives_one_sentence_with_the_command(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, the reader of a traceback must guess which package of which version is missing."""

    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {library!r}", name=library)

    monkeypatch.setattr("importlib.import_module", absent)
    card = ENCODERS["plip" if library == "transformers" else "uni"]
    with pytest.raises(ImportError, match=f"needs {library}, which is not installed: pip install .*{card.library}"):
        foundation.build_network(card, card.arguments)


def test_a_torchvision_of_another_build_is_named_as_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, the CPU torch beside the CUDA torchvision ends in «operator torchvision::nms does not exist»."""

    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(ImportError, match=r"nms does not exist.*install the torchvision of the same release"):
        foundation.build_network(ENCODERS["uni"], ENCODERS["uni"].arguments)


def test_transformers_5_is_refused_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, its renamed parameters look like a broken checkpoint."""
    monkeypatch.setattr(foundation, "import_library", lambda card, name, *attributes: ["5.23.0"])
    with pytest.raises(ImportError, match=r"needs transformers 4, got 5\.23\.0"):
        foundation.build_network(ENCODERS["plip"], ENCODERS["plip"].arguments)


def test_preprocessing_resizes_the_whole_field_and_normalises_with_the_cards_numbers() -> None:
    """If it fails, an encoder sees colours or a field that it was never trained on, and says nothing."""
    card = ENCODERS["h-optimus-0"]
    mean, std = torch.tensor(card.mean).view(1, 3, 1, 1), torch.tensor(card.std).view(1, 3, 1, 1)
    image = torch.rand(2, 3, 256, 192, generator=torch.Generator().manual_seed(0))
    ready = foundation.preprocess(image, card.input_px, mean, std)
    expected = F.interpolate(image, size=(224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.allclose(ready * std + mean, expected, atol=1e-6)
    assert torch.allclose(
        foundation.preprocess(image[..., :192, :], 192, mean, std), (image[..., :192, :] - mean) / std
    )
    bars = (torch.arange(256) // 8 % 2).float().expand(1, 3, 256, 256)  # bicubic overshoots at such bars
    back = foundation.preprocess(bars, 224, mean, std) * std + mean
    assert back.min() >= -1e-6 and back.max() <= 1 + 1e-6
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        foundation.preprocess(torch.zeros(1, 1, 8, 8), 224, mean, std)


@pytest.mark.parametrize("content", [b"", b"this is a text file", b"PK\x03\x04 truncated"])
@pytest.mark.parametrize("file", ["weights.bin", "weights.safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused_by_its_name(content: bytes, file: str, tmp_path: Path) -> None:
    """If it fails, a half download ends in a traceback of the unpickler."""
    if file.endswith("safetensors"):
        pytest.importorskip("safetensors")
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file} is not a checkpoint of tensors for encoder uni: ") as caught:
        foundation.read_checkpoint(ENCODERS["uni"], tmp_path / file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(3)])
def test_a_checkpoint_of_something_else_is_refused(content: Any, tmp_path: Path) -> None:
    """If it fails, a training state or a feature file is taken for weights."""
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="must hold a dict of tensors for encoder uni"):
        foundation.read_checkpoint(ENCODERS["uni"], tmp_path / "weights.pt")


@pytest.mark.usefixtures("torchvision_schemas")
@pytest.mark.parametrize("name", ENCODERS)
def test_the_architecture_has_the_published_size(name: str) -> None:
    """If it fails, the published weights do not fit, which nobody without them would notice."""
    card = ENCODERS[name]
    need(card)
    with torch.device("meta"):
        network = foundation.build_network(card, card.arguments)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(PUBLISHED_MILLIONS[name], abs=0.6)


@pytest.mark.usefixtures("torchvision_schemas")
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("name", ENCODERS)
def test_tokens_are_those_of_the_library_without_the_registers(name: str, suffix: str, tmp_path: Path) -> None:
    """If it fails, weights are loaded in part, registers pass for tissue, or the encoder trains along."""
    card = ENCODERS[name]
    need(card)
    network, path = small_network(card), tmp_path / f"weights.{suffix}"
    state = checkpoint_of(card, network)
    if suffix == "bin":
        torch.save({"state_dict": state}, path)
    else:
        from safetensors.torch import save_file

        save_file(state, path)
    encoder = FoundationEncoder(name, path, overrides=tiny(card)).train()
    image = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0)).requires_grad_()
    tokens = encoder(image)
    assert tokens.shape == (2, 5, 24) and encoder.width == 24
    assert not tokens.requires_grad and not encoder.training and not encoder.network.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    with torch.no_grad():
        ready = encoder.preprocess(image)
        if card.library == "timm":
            expected = network.forward_features(ready)  # type: ignore[operator]
        else:
            output = network(pixel_values=ready)
            expected = output.last_hidden_state
            if name == "plip":
                expected = network.post_layernorm(expected)  # type: ignore[operator]
            assert torch.allclose(tokens[:, 0], output.pooler_output, atol=1e-5)
    assert expected.shape[1] == card.prefix_tokens + 4
    assert torch.allclose(tokens[:, 0], expected[:, 0], atol=1e-5)
    assert torch.allclose(tokens[:, 1:], expected[:, card.prefix_tokens :], atol=1e-5)
    assert torch.allclose(tokens[:1], encoder(image[:1]), atol=1e-5)


@pytest.mark.usefixtures("torchvision_schemas")
def test_weights_of_another_encoder_are_refused_by_their_first_keys(tmp_path: Path) -> None:
    """If it fails, a run with half-loaded weights looks like a poor encoder."""
    card = ENCODERS["virchow2"]
    need(card)
    state = checkpoint_of(card, small_network(card))
    state["head.weight"] = state.pop("reg_token")
    state["norm.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "wrong.bin")
    with pytest.raises(
        ValueError, match=r"virchow2: missing: reg_token \(1 in all\), unexpected: head.weight .*norm.bias"
    ):
        FoundationEncoder("virchow2", tmp_path / "wrong.bin", overrides=tiny(card))


@pytest.mark.usefixtures("torchvision_schemas")
def test_position_embeddings_of_another_grid_are_resampled(tmp_path: Path) -> None:
    """If it fails, CONCH weights saved for 224 px tiles cannot be used at 448 px."""
    card = ENCODERS["conch"]
    need(card)
    state = checkpoint_of(card, small_network(card))
    key = "visual.trunk.pos_embed"
    state[key] = torch.cat([state[key][:, :1], torch.full((1, 9, 24), 0.25)], dim=1)  # 3 x 3 patches instead of 2 x 2
    torch.save(state, tmp_path / "conch.bin")
    table = FoundationEncoder("conch", tmp_path / "conch.bin", overrides=tiny(card)).network.state_dict()["pos_embed"]
    assert table.shape == (1, 5, 24)
    assert torch.allclose(table[:, :1], state[key][:, :1])
    assert torch.allclose(table[:, 1:], torch.full((1, 4, 24), 0.25), atol=1e-6)
