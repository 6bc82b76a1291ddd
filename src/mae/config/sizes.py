"""Named model sizes, vit-ti to vit-h; vit-ti and vit-s have no published decoder."""

from __future__ import annotations

import difflib

from mae.config.model import IMAGENET_MEAN, IMAGENET_STD, ModelConfig, PixelConfig
from mae.errors import ConfigError

_DECODER = {"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16}

# Source: published code, models_mae.py (B, L, H); Ti and S have no published decoder.
SIZES: dict[str, dict[str, int]] = {
    "vit-ti": {"width": 192, "depth": 12, "num_heads": 3, "decoder_width": 192,
               "decoder_depth": 4, "decoder_heads": 6},
    "vit-s": {"width": 384, "depth": 12, "num_heads": 6, "decoder_width": 256,
              "decoder_depth": 4, "decoder_heads": 8},
    "vit-b": {"width": 768, "depth": 12, "num_heads": 12} | _DECODER,
    "vit-l": {"width": 1024, "depth": 24, "num_heads": 16} | _DECODER,
    "vit-h": {"width": 1280, "depth": 32, "num_heads": 16} | _DECODER,
}  # fmt: skip


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
    settled = size_fields(name)
    pixels = (
        PixelConfig(mean=IMAGENET_MEAN, std=IMAGENET_STD)
        if channels == 3
        else PixelConfig(mean=(0.5,) * channels, std=(0.5,) * channels)
    )
    size_hw = (image_size, image_size) if isinstance(image_size, int) else image_size
    given = {"image_size": size_hw, "channels": channels, "pixels": pixels}
    return ModelConfig(**(settled | given | fields))  # type: ignore[arg-type]


def size_name(*, width: int, depth: int, patch_size: int) -> str:
    """Name an encoder: vit-b/16, or its numbers where no size has them."""
    for name, size in SIZES.items():
        if (size["width"], size["depth"]) == (width, depth):
            return f"{name}/{patch_size}"
    return f"ViT of width {width}, {depth} blocks, patch {patch_size}"
