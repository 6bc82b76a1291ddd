"""Named model sizes, vit-ti to vit-h; vit-ti and vit-s have no published decoder."""

from __future__ import annotations

import difflib

from mae.config.model import ModelConfig, PixelConfig
from mae.errors import ConfigError

_FIELDS = ("width", "depth", "num_heads", "decoder_width", "decoder_depth", "decoder_heads")
# Source: published code, models_mae.py (B, L, H); Ti and S have no published decoder.
_NUMBERS = {
    "vit-ti": (192, 12, 3, 192, 4, 6),
    "vit-s": (384, 12, 6, 256, 4, 8),
    "vit-b": (768, 12, 12, 512, 8, 16),
    "vit-l": (1024, 24, 16, 512, 8, 16),
    "vit-h": (1280, 32, 16, 512, 8, 16),
}
SIZES = {name: dict(zip(_FIELDS, numbers, strict=True)) for name, numbers in _NUMBERS.items()}
"""Fields of `ModelConfig` by the name of a size."""


def size_fields(name: str) -> dict[str, int]:
    """Return the fields of `ModelConfig` that a name sets: patch, widths, depths and heads.

    Args:
        name: size and patch edge, as in "vit-b/16".

    Raises:
        ConfigError: for an unknown name.
    """
    size, _, patch = name.lower().partition("/")
    if size not in SIZES or not patch.isdecimal():
        near = difflib.get_close_matches(size, SIZES, n=1)
        hint = f"; did you mean {near[0]}/{patch or 16}?" if near else ""
        raise ConfigError(
            f"model: got {name!r}, expected one of {', '.join(SIZES)} and /PATCH{hint}"
        )
    return SIZES[size] | {"patch_size": int(patch)}


def model_config(
    name: str, *, image_size: int | tuple[int, int] = 224, channels: int = 3, **fields: object
) -> ModelConfig:
    """Create a configuration from a name: vit-{ti,s,b,l,h}/PATCH.

    Args:
        name: size and patch edge, as in "vit-b/16".
        image_size: edge, or height and width, in pixels.
        channels: channels of an image; 3 use ImageNet's mean and std, any other number uses 0.5
            for both.
        fields: other fields of `ModelConfig`.

    Raises:
        ConfigError: for an unknown name.
    """
    halves = (0.5,) * channels
    pixels = PixelConfig() if channels == 3 else PixelConfig(mean=halves, std=halves)
    size_hw = (image_size, image_size) if isinstance(image_size, int) else image_size
    given = {"image_size": size_hw, "channels": channels, "pixels": pixels}
    return ModelConfig(**(size_fields(name) | given | fields))  # type: ignore[arg-type]


def size_name(*, width: int, depth: int, patch_size: int) -> str:
    """Name an encoder: vit-b/16, or its numbers where no size has them."""
    for name, size in SIZES.items():
        if (size["width"], size["depth"]) == (width, depth):
            return f"{name}/{patch_size}"
    return f"ViT of width {width}, {depth} blocks, patch {patch_size}"
