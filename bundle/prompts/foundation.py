"""Frozen pathology foundation encoders by name, from weights that the user fetched: image -> tokens.

    image   (B, 3, H, W) in [0, 1], sRGB       D   width of the encoder
    tokens  (B, 1 + n, D): the CLS token, then n = (input_px / patch_px)^2 patch tokens row by row; registers dropped

Nothing here downloads, and nothing runs code that comes with weights: the architectures are the stock ones of timm and
transformers, built from `ENCODERS` and filled strictly. Both libraries are imported only when an encoder is built.
"""

from __future__ import annotations

import importlib
import os
import pickle
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bundle.conventions import check_image
from bundle.prompts.encoder_cards import ENCODERS, EncoderCard

__all__ = ["ENCODERS", "EncoderCard", "FoundationEncoder"]

INSTALL = {"timm": "pip install timm torchvision", "transformers": "pip install 'transformers<5'"}
WRAPPERS = ("state_dict", "model")
# What unpickling a text file, half a file or arbitrary bytes raises.
TORN_PICKLE: tuple[type[Exception], ...] = (
    OSError, EOFError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, struct.error,
    pickle.UnpicklingError,
)  # fmt: skip


class Checkpoint(NamedTuple):
    """Where the weights lie and what they hold."""

    path: Path
    state: dict[str, Tensor]


def encoder_card(name: str) -> EncoderCard:
    """Look an encoder up.

    Raises:
        ValueError: there is no such encoder.
    """
    if name not in ENCODERS:
        raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}, got {name!r}.")
    return ENCODERS[name]


def hub_cache() -> Path:
    """Folder in which the hub's client keeps what the user downloaded (its own environment variables, its default)."""
    if "HF_HUB_CACHE" in os.environ:
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    return Path(os.environ.get("HF_HOME", cache / "huggingface")).expanduser() / "hub"


def find_weights(card: EncoderCard, weights: str | Path | None) -> Path:
    """The checkpoint: `weights` itself, one of the card's files in the folder `weights`, or one in the hub cache.

    Raises:
        FileNotFoundError: there is none; the sentence names the file, the hub id and the licence.
    """
    if weights is not None:
        place = Path(weights).expanduser()
        found = [place] if place.is_file() else [place / file for file in card.files]
        missing = f"{place} is not there"
    else:
        # A snapshot folder is named after its commit; the newest one is the user's last download.
        wanted = f"models--{card.hub_id.replace('/', '--')}".lower()
        homes = [home for home in hub_cache().glob("models--*") if home.name.lower() == wanted]
        snapshots = [snapshot for home in homes for snapshot in home.glob("snapshots/*")]
        snapshots.sort(key=lambda snapshot: snapshot.stat().st_mtime, reverse=True)
        found = [snapshot / file for snapshot in snapshots for file in card.files]
        missing = "no weights were given and the local hub cache has none"
    for path in found:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"Encoder {card.name} needs {' or '.join(card.files)} of {card.hub_id} on the Hugging Face hub "
        f"(licence: {card.licence}; {card.access}), but {missing}."
    )


def import_library(card: EncoderCard, name: str, *attributes: str) -> Any:
    """Import `name` for `card` and look `attributes` up, which transformers imports only then.

    Returns:
        The module, or the list of its `attributes` where some are asked for.

    Raises:
        ImportError: it, or the torchvision that it needs, is missing or was built for another torch.
    """
    try:
        module = importlib.import_module(name)
        return [getattr(module, attribute) for attribute in attributes] if attributes else module
    except (ImportError, RuntimeError) as error:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        if isinstance(root, ModuleNotFoundError) and root.name is not None:
            command = INSTALL.get(name, f"pip install {name}")
            raise ImportError(f"Encoder {card.name} needs {root.name}, which is not installed: {command}.") from error
        raise ImportError(
            f"Encoder {card.name} needs {name}, which does not import ({root}): install the torchvision of the same "
            f"release and build as torch {torch.__version__}."
        ) from error


def read_tensors(card: EncoderCard, path: Path) -> Any:
    """What a safetensors file holds, or what `torch.load` with weights_only accepts.

    Raises:
        ImportError: the file is a .safetensors one and safetensors is missing.
        ValueError: the file cannot be read, or holds more than tensors.
    """
    unreadable = TORN_PICKLE
    load: Callable[[Path], Any] = partial(torch.load, map_location="cpu", weights_only=True)
    if path.suffix == ".safetensors":
        (load,) = import_library(card, "safetensors.torch", "load_file")
        unreadable = (OSError, *import_library(card, "safetensors", "SafetensorError"))
    try:
        return load(path)
    except unreadable as error:
        # The unpickler's own words are left out: they advise weights_only=False, which would run the file's code.
        kind = (
            "safetensors file" if path.suffix == ".safetensors" else "file of torch.save with nothing but tensors in it"
        )
        raise ValueError(
            f"{path} is not a checkpoint of tensors for encoder {card.name}: it is no whole {kind}."
        ) from error


def read_checkpoint(card: EncoderCard, path: Path) -> Checkpoint:
    """Read `path` and keep the image encoder's part.

    Raises:
        ValueError: the file is no checkpoint of tensors.
    """
    state = read_tensors(card, path)
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} must hold a dict of tensors for encoder {card.name}, got {type(state).__name__}.")
    prefix = card.key_prefix
    if prefix and any(key.startswith(prefix) for key in state):
        state = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    return Checkpoint(path, {key: value for key, value in state.items() if not key.endswith("position_ids")})


def build_network(card: EncoderCard, arguments: Mapping[str, Any]) -> nn.Module:
    """The bare architecture with random weights; `load_strictly` must follow.

    Raises:
        ImportError: the library is missing.
    """
    if card.library == "timm":
        (create_model,) = import_library(card, "timm", "create_model")
        (swiglu,) = import_library(card, "timm.layers", "SwiGLUPacked")
        layers = {"SwiGLUPacked": swiglu, "SiLU": nn.SiLU}
        resolved = {key: layers.get(value, value) for key, value in arguments.items()}
        # weight_init="skip": drawing a billion random weights that the checkpoint replaces would take many seconds.
        return create_model(card.architecture, pretrained=False, num_classes=0, weight_init="skip", **resolved)
    version = import_library(card, card.library, "__version__")[0]
    if int(version.split(".")[0]) >= 5:
        # transformers 5 renamed parameters and translates a file's keys only while it downloads it itself.
        raise ImportError(f"Encoder {card.name} needs transformers 4, got {version}: {INSTALL['transformers']}.")
    kind, config = import_library(card, card.library, card.architecture, card.architecture.replace("Model", "Config"))
    network = kind(config(**arguments))
    return getattr(network, "vision_model", network)  # CLIPVisionModel wraps the transformer proper


def load_strictly(card: EncoderCard, network: nn.Module, checkpoint: Checkpoint) -> None:
    """Fill every tensor of `network`; position embeddings of another grid are resampled, as timm does on loading.

    Raises:
        ValueError: a key or a shape does not fit; the sentence names the first ones.
    """
    path, state = checkpoint
    expected = network.state_dict()
    table = state.get("pos_embed")
    if table is not None and "pos_embed" in expected and table.shape != expected["pos_embed"].shape:
        prefix = expected["pos_embed"].shape[1] - network.patch_embed.num_patches  # type: ignore[union-attr]
        side = round(max(table.shape[1] - prefix, 0) ** 0.5)
        if side * side + prefix == table.shape[1] and table.shape[2] == expected["pos_embed"].shape[2]:
            resample = importlib.import_module("timm.layers").resample_abs_pos_embed
            grid = network.patch_embed.grid_size  # type: ignore[union-attr]
            state = state | {"pos_embed": resample(table, new_size=grid, num_prefix_tokens=prefix)}
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    shapes = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    if missing or unexpected or shapes:
        faults = [("missing", missing), ("unexpected", unexpected), ("other shape", shapes)]
        first = ", ".join(f"{kind}: {keys[0]} ({len(keys)} in all)" for kind, keys in faults if keys)
        raise ValueError(f"{path} does not hold the weights of encoder {card.name}: {first}.")
    network.load_state_dict(state, strict=True)


class FoundationEncoder(nn.Module):
    """A frozen encoder: always in eval mode, no gradient in its weights nor through it.

    The whole field is resized to the encoder's input size (bicubic with antialiasing, clipped to [0, 1]), never
    cropped: the tokens must cover the tile that is restored. CONCH's own package is not on the package index; its image
    tower is a ViT-B/16, so the `visual.trunk.` keys of its CoCa checkpoint go into timm's ViT and the rest (poolers,
    text) is left out. Hibou's hub code is not run: its keys are those of transformers' Dinov2WithRegistersModel.

    Attributes:
        width: D.
        input_px: side of the square that the encoder sees.
        patches: number of patch tokens n.
    """

    def __init__(
        self, name: str, weights: str | Path | None = None, overrides: Mapping[str, Any] | None = None
    ) -> None:
        """Build the architecture and load its weights.

        Args:
            name: a key of `ENCODERS`.
            weights: checkpoint (.safetensors, .bin, .pt, .pth) or the folder that holds it; None: the local hub cache.
            overrides: constructor arguments that replace the card's, for a variant of the same family.

        Raises:
            ValueError: unknown name, or a file that does not hold this encoder.
            FileNotFoundError: no weights.
            ImportError: timm, transformers or torchvision is missing.
        """
        super().__init__()
        self.card = encoder_card(name)
        path = find_weights(self.card, weights)
        arguments = {**self.card.arguments, **(overrides or {})}
        timm_names = self.card.library == "timm"
        self.width = int(arguments["embed_dim" if timm_names else "hidden_size"])
        self.input_px = int(arguments["img_size" if timm_names else "image_size"])
        self.patches = (self.input_px // int(arguments["patch_size"])) ** 2
        self.network = build_network(self.card, arguments)
        load_strictly(self.card, self.network, read_checkpoint(self.card, path))
        self.register_buffer("mean", torch.tensor(self.card.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.card.std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FoundationEncoder:
        """Stay in eval mode whatever `mode` asks: dropout or stochastic depth would change the prompt."""
        return super().train(False)

    def preprocess(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, input_px, input_px), normalised with the encoder's own mean and std."""
        return preprocess(image, self.input_px, self.mean, self.std)  # type: ignore[arg-type]

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Tokens (B, 1 + n, D), CLS first, each after the encoder's last layer norm.

        Raises:
            ValueError: `image` is not (B, 3, H, W).
        """
        image = self.preprocess(image)
        if self.card.library == "timm":
            tokens = self.network.forward_features(image)  # type: ignore[operator]
        else:
            tokens = self.network(pixel_values=image).last_hidden_state
            if hasattr(self.network, "post_layernorm"):  # CLIP norms only the pooled token
                tokens = self.network.post_layernorm(tokens)  # type: ignore[operator]
        return torch.cat([tokens[:, :1], tokens[:, -self.patches :]], dim=1)


def preprocess(image: Tensor, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """Resize (B, 3, H, W) in [0, 1] to size x size (bicubic, antialiased, clipped) and normalise.

    Raises:
        ValueError: `image` is not (B, 3, H, W).
    """
    check_image(image)
    if image.shape[-2:] != (size, size):
        image = F.interpolate(image, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return (image.clamp(0, 1) - mean) / std
