"""What a network is, from the shapes of its tensors: for files that do not describe themselves."""

from __future__ import annotations

import math
from typing import NamedTuple

from mae.config import SIZES, ModelConfig, PixelConfig
from mae.errors import WeightsError
from mae.weights.detect import RawWeights

DEFAULT = ModelConfig()


class Told(NamedTuple):
    """What the caller knows of a file that does not describe itself."""

    heads: int | None = None
    """Encoder heads."""
    decoder_heads: int | None = None
    """Decoder heads."""
    image_size: tuple[int, int] | None = None
    """Height and width, needed where the patch grid is not square."""
    normalize_target: bool | None = None
    """Whether the decoder predicts pixels normalised by their patch."""


class Shapes(NamedTuple):
    """What tensors alone tell."""

    patch_size: int
    channels: int
    width: int
    depth: int
    mlp_ratio: float
    num_patches: int
    decoder_width: int
    """As published without a decoder."""
    decoder_depth: int
    """As published without a decoder."""


def read_shapes(raw: RawWeights) -> Shapes:
    """Read sizes from tensors.

    Raises:
        WeightsError: if a tensor that tells them is missing or has no such shape.
    """
    width, channels, patch_size, _ = _shape(raw, "encoder.patch_embed.proj.weight", ndim=4)
    hidden, _ = _shape(raw, "encoder.blocks.0.mlp.fc1.weight", ndim=2)
    _, num_tokens, _ = _shape(raw, "encoder.pos_embed", ndim=3)
    decoder_width, decoder_depth = DEFAULT.decoder_width, DEFAULT.decoder_depth
    if raw.has_decoder:
        decoder_width, _ = _shape(raw, "decoder.embed.weight", ndim=2)
        decoder_depth = _depth(raw, "decoder.blocks.")
    return Shapes(
        patch_size=patch_size,
        channels=channels,
        width=width,
        depth=_depth(raw, "encoder.blocks."),
        mlp_ratio=hidden / width,
        num_patches=num_tokens - 1,
        decoder_width=decoder_width,
        decoder_depth=decoder_depth,
    )


def config_of(raw: RawWeights, told: Told) -> tuple[ModelConfig, list[str]]:
    """Give the configuration of what was read, and a note on whatever had to be assumed.

    Raises:
        WeightsError: where neither the file nor the caller tells, or the two disagree.
    """
    if raw.config is not None:
        _require_agreement(raw, raw.config, told)
        return raw.config, []
    shapes = read_shapes(raw)
    heads = told.heads or usual_heads(shapes.width)
    decoder_heads = told.decoder_heads or usual_decoder_heads(shapes.decoder_width)
    unknown = [n for n, v in (("heads", heads), ("decoder_heads", decoder_heads)) if v is None]
    if heads is None or decoder_heads is None:
        raise WeightsError(
            f"{raw.path}: does not hold the number of heads, and the widths {shapes.width} and "
            f"{shapes.decoder_width} are of no known size; give {', '.join(unknown)}"
        )
    p, grid = shapes.patch_size, square_grid(shapes.num_patches)
    if told.image_size is None and grid is None:
        raise WeightsError(
            f"{raw.path}: has positions of {shapes.num_patches} patches, not a square; give "
            "image_size as height and width"
        )
    notes = [f"{raw.path}: {note}" for note in _assumed(raw, shapes, told)]
    target = {} if told.normalize_target is None else {"normalize_target": told.normalize_target}
    fields = shapes._asdict() | dict(raw.known) | target
    del fields["num_patches"]
    config = ModelConfig(
        image_size=told.image_size or (grid[0] * p, grid[1] * p),  # type: ignore[index]
        num_heads=heads,
        decoder_heads=decoder_heads,
        pixels=DEFAULT.pixels if shapes.channels == 3 else _plain_pixels(shapes.channels),
        **fields,
    )
    return config, notes


def usual_heads(width: int) -> int | None:
    """Give the encoder heads that go with a width of the known sizes."""
    return {size["width"]: size["num_heads"] for size in SIZES.values()}.get(width)


def usual_decoder_heads(width: int) -> int | None:
    """Give the decoder heads that go with a decoder width of the known sizes."""
    known = {
        size["decoder_width"]: size["decoder_heads"]
        for size in SIZES.values()
        if "decoder_width" in size
    }
    return ({DEFAULT.decoder_width: DEFAULT.decoder_heads} | known).get(width)


def square_grid(num_patches: int) -> tuple[int, int] | None:
    """Give the square grid of a number of patches, if there is one."""
    edge = math.isqrt(num_patches)
    return (edge, edge) if edge * edge == num_patches else None


def _require_agreement(raw: RawWeights, config: ModelConfig, told: Told) -> None:
    stored = (
        config.num_heads, config.decoder_heads, config.image_size, config.normalize_target
    )  # fmt: skip
    for name, value, said in zip(Told._fields, told, stored, strict=True):
        if value not in (None, said):
            raise WeightsError(f"{name}: got {value}, but {raw.path} says {said}; leave it out")


def _assumed(raw: RawWeights, shapes: Shapes, told: Told) -> list[str]:
    notes = []
    if raw.has_decoder and told.normalize_target is None and "normalize_target" not in raw.known:
        notes.append(
            "does not say its target; assumed pixels normalised by their patch, as in the "
            "published full files (the published visualisation files predict plain pixels: "
            "normalize_target=False)"
        )
    if shapes.channels != 3:
        notes.append("does not say how its pixels were scaled; assumed mean 0.5, deviation 0.5")
    return notes


def _plain_pixels(channels: int) -> PixelConfig:
    return PixelConfig(mean=(0.5,) * channels, std=(0.5,) * channels)


def _shape(raw: RawWeights, name: str, *, ndim: int) -> tuple[int, ...]:
    if name not in raw.tensors:
        raise WeightsError(f"{raw.path}: {raw.spell(name)} is missing; get the whole file")
    shape = tuple(raw.tensors[name].shape)
    if len(shape) != ndim or 0 in shape:
        raise WeightsError(
            f"{raw.path}: {raw.spell(name)} has shape {shape}, expected {ndim} dimensions"
        )
    return shape


def _depth(raw: RawWeights, prefix: str) -> int:
    # Distinct numbers, not the largest one: a gap then shows as missing and left-over blocks.
    return len({name.split(".")[2] for name in raw.tensors if name.startswith(prefix)})
