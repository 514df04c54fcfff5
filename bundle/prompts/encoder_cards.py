"""The table of foundation encoders: architecture, preprocessing, width, licence and who gives the weights.

Constructor arguments, mean and std are those of each model's card on the Hugging Face hub or of its authors' code;
every size that a test or an override may change is written out. The weights are never part of this repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
H_OPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
HIBOU = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))

ACADEMIC = "CC-BY-NC-ND-4.0, non-commercial academic research only"
MAHMOOD = "gated: request access on its hub page with an institutional e-mail; commercial use: the corresponding author"
BINARY = ("pytorch_model.bin", "model.safetensors")
SAFE = ("model.safetensors", "pytorch_model.bin")


class EncoderCard(NamedTuple):
    """What is needed to build one encoder, feed it and name it in an error."""

    name: str
    library: str  # "timm" or "transformers"
    architecture: str  # timm's model name, or the transformers class
    arguments: Mapping[str, Any]  # of its constructor
    hub_id: str
    files: tuple[str, ...]  # names of the checkpoint on the hub, the usual one first
    key_prefix: str  # the image encoder's keys in that checkpoint; "" where it holds nothing else
    input_px: int
    patch_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    width: int
    prefix_tokens: int  # CLS + registers
    licence: str
    access: str
    citation: str


def _timm_vit(
    model: str, width: int, depth: int, heads: int, patch: int, size: int = 224, **more: Any
) -> dict[str, Any]:
    sizes = {"img_size": size, "patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads}
    return {"library": "timm", "architecture": model, "arguments": MappingProxyType({**sizes, **more})}


def _transformers_vit(model: str, width: int, depth: int, heads: int, patch: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
    arguments = {"image_size": 224, "patch_size": patch, **sizes, **more}
    return {"library": "transformers", "architecture": model, "arguments": MappingProxyType(arguments)}


def _card(
    name: str, hub_id: str, colours: tuple[Any, Any], built: dict[str, Any], registers: int = 0, **more: Any
) -> EncoderCard:
    arguments = built["arguments"]
    return EncoderCard(
        name=name,
        hub_id=hub_id,
        mean=colours[0],
        std=colours[1],
        input_px=arguments.get("img_size", arguments.get("image_size")),
        patch_px=arguments["patch_size"],
        width=arguments.get("embed_dim", arguments.get("hidden_size")),
        prefix_tokens=1 + registers,
        **{"files": BINARY, "key_prefix": "", **built, **more},
    )


# DINOv2's feed-forward: gate and value packed in one matrix of ratio x width rows.
_SWIGLU: dict[str, Any] = {"init_values": 1e-5, "mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
_GIANT: dict[str, Any] = {**_SWIGLU, "mlp_ratio": 2.66667 * 2}

_CARDS = (
    _card(
        "prov-gigapath",
        "prov-gigapath/prov-gigapath",
        IMAGENET,
        _timm_vit("vit_giant_patch14_dinov2", 1536, 40, 24, 16, **_GIANT),
        licence="Apache-2.0; its access form asks for research use only",
        access="gated: accept the terms on its hub page",
        citation="Xu et al., Nature 630, 2024, doi:10.1038/s41586-024-07441-w",
    ),
    _card(
        "uni",
        "MahmoodLab/UNI",
        IMAGENET,
        _timm_vit("vit_large_patch16_224", 1024, 24, 16, 16, init_values=1e-5),
        licence=ACADEMIC,
        access=MAHMOOD,
        citation="Chen et al., Nature Medicine 30, 2024, doi:10.1038/s41591-024-02857-3",
    ),
    _card(
        "uni2-h",
        "MahmoodLab/UNI2-h",
        IMAGENET,
        _timm_vit("vit_giant_patch14_224", 1536, 24, 24, 14, reg_tokens=8, no_embed_class=True, **_GIANT),
        registers=8,
        licence=ACADEMIC,
        access=MAHMOOD,
        citation="Chen et al., Nature Medicine 30, 2024, doi:10.1038/s41591-024-02857-3",
    ),
    _card(
        "conch",
        "MahmoodLab/CONCH",
        CLIP,
        _timm_vit("vit_base_patch16_224", 768, 12, 12, 16, size=448),
        key_prefix="visual.trunk.",
        licence=ACADEMIC,
        access=MAHMOOD,
        citation="Lu et al., Nature Medicine 30, 2024, doi:10.1038/s41591-024-02856-4",
    ),
    _card(
        "virchow2",
        "paige-ai/Virchow2",
        IMAGENET,
        _timm_vit("vit_huge_patch14_224", 1280, 32, 16, 14, reg_tokens=4, mlp_ratio=5.3375, **_SWIGLU),
        registers=4,
        licence="CC-BY-NC-ND-4.0, non-commercial research only",
        access="gated: request access on its hub page with an institutional e-mail; commercial use: Paige",
        citation="Zimmermann et al., 2024, arXiv:2408.00738",
    ),
    _card(
        "h-optimus-0",
        "bioptimus/H-optimus-0",
        H_OPTIMUS,
        _timm_vit("vit_giant_patch14_reg4_dinov2", 1536, 40, 24, 14, reg_tokens=4, no_embed_class=True, **_GIANT),
        registers=4,
        licence="Apache-2.0",
        access="accept the terms on its hub page",
        citation="Saillard et al., H-optimus-0, Bioptimus, 2024",
    ),
    *(
        _card(
            f"hibou-{letter.lower()}",
            f"histai/hibou-{letter}",
            HIBOU,
            _transformers_vit(
                "Dinov2WithRegistersModel", width, depth, heads, 14, num_register_tokens=4, use_swiglu_ffn=True
            ),
            registers=4,
            files=SAFE,
            licence="Apache-2.0",
            access="accept the terms on its hub page",
            citation="Nechaev et al., 2024, arXiv:2406.05074",
        )
        for letter, width, depth, heads in (("b", 768, 12, 12), ("L", 1024, 24, 16))
    ),
    _card(
        "phikon-v2",
        "owkin/phikon-v2",
        IMAGENET,
        _transformers_vit("Dinov2Model", 1024, 24, 16, 16),
        files=SAFE,
        licence="Owkin non-commercial licence (LICENSE.pdf beside the weights)",
        access="open download from its hub page; commercial use: Owkin",
        citation="Filiot et al., 2024, arXiv:2409.09173",
    ),
    _card(
        "plip",
        "vinid/plip",
        CLIP,
        _transformers_vit("CLIPVisionModel", 768, 12, 12, 32, intermediate_size=3072),
        key_prefix="vision_model.",
        licence="none stated on its hub page",
        access="open download from its hub page; ask the authors before any use beyond research",
        citation="Huang et al., Nature Medicine 29, 2023, doi:10.1038/s41591-023-02504-3",
    ),
)

ENCODERS: Mapping[str, EncoderCard] = MappingProxyType({card.name: card for card in _CARDS})


def encoder_table() -> str:
    """`ENCODERS` as the Markdown table of docs/foundation_encoders.md."""
    head = ("name", "hub id and file", "input", "tokens", "width", "through", "licence", "who to ask", "source")
    rows = [head, ("---",) * len(head)]
    for card in ENCODERS.values():
        patches = (card.input_px // card.patch_px) ** 2
        place = f"`{card.hub_id}`: `{card.files[0]}`"
        size = f"{card.input_px} px, patch {card.patch_px}"
        end = (card.library, card.licence, card.access, card.citation)
        rows.append((f"`{card.name}`", place, size, f"1 + {patches}", str(card.width), *end))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
