"""What a network is, from its tensors: for files that do not describe themselves."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from mae.config import SIZES, ModelConfig, PixelConfig
from mae.errors import WeightsError
from mae.weights.detect import RawWeights

_DEFAULT = ModelConfig()


class Told(NamedTuple):
    """What the caller knows of a file that does not describe itself."""

    heads: int | None = None
    decoder_heads: int | None = None
    image_size: tuple[int, int] | None = None
    """Height and width."""
    normalize_target: bool | None = None


NOTHING_TOLD = Told()


def read_fields(raw: RawWeights) -> dict[str, Any]:
    """Read the fields of `ModelConfig` as far as tensors and file tell them.

    The numbers of heads follow from the widths of known sizes; the image size from a square
    grid. Where they do not, the field is left out.

    Raises:
        WeightsError: if a tensor that tells a size is missing or has no such shape.
    """
    if raw.description is not None:
        model = raw.description.model
        return {name: getattr(model, name) for name in model.__dataclass_fields__}
    width, channels, patch_size, _ = _shape(raw, "encoder.patch_embed.proj.weight", ndim=4)
    hidden, _ = _shape(raw, "encoder.blocks.0.mlp.fc1.weight", ndim=2)
    _, num_tokens, _ = _shape(raw, "encoder.pos_embed", ndim=3)
    fields: dict[str, Any] = {
        "patch_size": patch_size,
        "channels": channels,
        "width": width,
        "depth": _depth(raw, "encoder.blocks."),
        "num_heads": {size["width"]: size["num_heads"] for size in SIZES.values()}.get(width),
        "mlp_ratio": hidden / width,
        **raw.known,
    }
    if raw.has_decoder:
        E, _ = _shape(raw, "decoder.embed.weight", ndim=2)
        heads = {size.get("decoder_width"): size.get("decoder_heads") for size in SIZES.values()}
        heads[_DEFAULT.decoder_width] = _DEFAULT.decoder_heads
        fields |= {"decoder_width": E, "decoder_depth": _depth(raw, "decoder.blocks."),
                   "decoder_heads": heads.get(E)}  # fmt: skip
    edge = math.isqrt(num_tokens - 1)
    if edge**2 == num_tokens - 1:
        fields["image_size"] = (edge * patch_size, edge * patch_size)
    if channels != _DEFAULT.channels:
        fields["pixels"] = PixelConfig(mean=(0.5,) * channels, std=(0.5,) * channels)
    return {name: value for name, value in fields.items() if value is not None}


def config_of(raw: RawWeights, told: Told) -> tuple[ModelConfig, list[str]]:
    """Give the configuration of what was read, and a note on whatever had to be assumed.

    Raises:
        WeightsError: where neither file nor caller tells a field, or the two disagree.
    """
    fields = read_fields(raw)
    given = {("num_heads" if n == "heads" else n): v for n, v in told._asdict().items()}
    asked = {name: value for name, value in given.items() if value is not None}
    if raw.description is not None:
        for name, value in asked.items():
            if value != fields[name]:
                raise WeightsError(f"{name}: got {value}, but {raw.path} says {fields[name]}")
        return raw.description.model, []
    fields |= asked
    needed = ["num_heads", "image_size", *["decoder_heads"] * raw.has_decoder]
    unknown = [name.removeprefix("num_") for name in needed if name not in fields]
    if unknown:
        raise WeightsError(
            f"{raw.path}: width {fields['width']} is of no known size or the grid is not square, "
            f"and the file does not tell; give {', '.join(unknown)}"
        )
    notes = []
    if raw.has_decoder and "normalize_target" not in fields:
        notes.append(
            f"{raw.path}: does not say its target; assumed pixels normalised by their patch, as "
            "in the published full files (not the visualisation ones: normalize_target=False)"
        )
    if "pixels" in fields:
        notes.append(f"{raw.path}: does not say how pixels were scaled; assumed mean and std 0.5")
    return ModelConfig(**fields), notes


def _shape(raw: RawWeights, name: str, *, ndim: int) -> tuple[int, ...]:
    shape = tuple(raw.tensors[name].shape) if name in raw.tensors else None
    if shape is None or len(shape) != ndim or 0 in shape:
        raise WeightsError(
            f"{raw.path}: {raw.spell(name)} is {f'of shape {shape}' if shape else 'missing'}, "
            f"expected {ndim} dimensions; get the whole file"
        )
    return shape


def _depth(raw: RawWeights, prefix: str) -> int:
    # Distinct numbers, not the largest one: a gap then shows as missing and left-over blocks.
    return len({name.split(".")[2] for name in raw.tensors if name.startswith(prefix)})
