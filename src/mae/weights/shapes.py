"""What a network is, from its tensors: for files that do not describe themselves."""

from __future__ import annotations

import math
from dataclasses import fields as fields_of
from dataclasses import replace
from typing import Any

from mae.errors import WeightsError
from mae.network import ModelConfig, PixelConfig
from mae.sizes import SIZES, model_config
from mae.weights.detect import RawWeights

_PUBLISHED = [model_config(f"{name}/16") for name in SIZES]


def read_fields(raw: RawWeights) -> dict[str, Any]:
    """Read the fields of `ModelConfig` as far as tensors and file tell them.

    Without a description, the numbers of heads follow from the widths of known sizes; for other
    widths they are left out, as are a decoder's fields where there is none.

    Raises:
        WeightsError: if a tensor that tells a size is missing or has no such shape, if patches
            that make no square are not described, or a description is of another network.
    """
    if raw.description is not None:
        model = raw.description.model
        _require_held(raw, model)
        names = [field.name for field in fields_of(model)]
        return {n: getattr(model, n) for n in names if raw.has_decoder or "decoder" not in n}
    width, channels, patch_size, _ = _shape(raw, "encoder.patch_embed.proj.weight", ndim=4)
    hidden, _ = _shape(raw, "encoder.blocks.0.mlp.fc1.weight", ndim=2)
    L = _shape(raw, "encoder.pos_embed", ndim=3)[1] - 1
    edge = math.isqrt(L)
    if edge**2 != L and "image_size" not in raw.known:
        raise WeightsError(
            f"{raw.path}: has {L} patches, which make no square, and does not tell height and "
            "width; expected weights with a description (config.json)"
        )
    fields = {
        "image_size": (edge * patch_size, edge * patch_size),
        "patch_size": patch_size,
        "channels": channels,
        "width": width,
        "depth": _depth(raw, "encoder.blocks."),
        "num_heads": {known.width: known.num_heads for known in _PUBLISHED}.get(width),
        "mlp_ratio": hidden / width,
        **{n: value for n, value in raw.known.items() if raw.has_decoder or "decoder" not in n},
    }
    if raw.has_decoder:
        E, _ = _shape(raw, "decoder.embed.weight", ndim=2)
        heads = {known.decoder_width: known.decoder_heads for known in _PUBLISHED}.get(E)
        depth = _depth(raw, "decoder.blocks.")
        fields |= {"decoder_width": E, "decoder_depth": depth}
        fields.setdefault("decoder_heads", heads)
    if channels != 3 and "pixels" not in fields:
        fields["pixels"] = PixelConfig(mean=(0.5,) * channels, std=(0.5,) * channels)
    return {name: value for name, value in fields.items() if value is not None}


def config_of(
    raw: RawWeights,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    crop_pct: float | None = None,
) -> tuple[ModelConfig, list[str]]:
    """Give the configuration of what was read, and a note on whatever had to be assumed.

    Raises:
        WeightsError: where neither file nor caller tells a field, or the two disagree.
    """
    fields = read_fields(raw)
    given = {"num_heads": heads, "decoder_heads": decoder_heads}
    asked = {name: value for name, value in given.items() if value is not None}
    told = fields if raw.description is not None else {**asked, **raw.known}
    said = {name: told.get(name) for name in asked}
    if asked != said:
        raise WeightsError(f"heads: got {asked}, but {raw.path} says {said}; leave them out")
    if raw.description is not None:
        return _with_crop_pct(raw, raw.description.model, crop_pct, [*raw.notes])
    fields |= asked
    needed = ["num_heads", "decoder_heads"] if raw.has_decoder else ["num_heads"]
    unknown = [name.removeprefix("num_") for name in needed if name not in fields]
    if unknown:
        raise WeightsError(
            f"{raw.path}: is of no published width and does not tell its heads; give "
            f"{', '.join(unknown)}"
        )
    notes = list(raw.notes)
    if raw.has_decoder and "normalize_target" not in fields:
        notes.append(
            f"{raw.path}: does not say its target; assumed pixels normalised by their patch, as "
            "in the published full files (not the visualisation ones)"
        )
    if "pixels" in fields.keys() - raw.known.keys():
        notes.append(f"{raw.path}: does not say how pixels were scaled; assumed mean and std 0.5")
    return _with_crop_pct(raw, ModelConfig(**fields), crop_pct, notes)


def _with_crop_pct(
    raw: RawWeights, model: ModelConfig, given: float | None, notes: list[str]
) -> tuple[ModelConfig, list[str]]:
    """Set the fraction of an image that evaluation keeps, if it is given or the run tells it."""
    if given is not None:
        return replace(model, crop_pct=given), notes
    if model.crop_pct is None and raw.whole_images:
        notes.append(
            f"{raw.path}: does not say its crop_pct; assumed 1, as its run trained on whole images"
        )
        return replace(model, crop_pct=1.0), notes
    return model, notes


def _require_held(raw: RawWeights, model: ModelConfig) -> None:
    """Refuse a description of other sizes than the tensors', before a huge network is made."""
    D, C, p, _ = _shape(raw, "encoder.patch_embed.proj.weight", ndim=4)
    hidden, _ = _shape(raw, "encoder.blocks.0.mlp.fc1.weight", ndim=2)
    L = _shape(raw, "encoder.pos_embed", ndim=3)[1] - 1
    held = {
        "width": (model.width, D),
        "channels": (model.channels, C),
        "patch_size": (model.patch_size, p),
        "depth": (model.depth, _depth(raw, "encoder.blocks.")),
        "mlp_ratio": (int(model.width * model.mlp_ratio) / model.width, hidden / D),
        "image_size": (f"{model.num_patches} patches", f"{L} patches"),
    }
    if raw.has_decoder:
        E, _ = _shape(raw, "decoder.embed.weight", ndim=2)
        held["decoder_width"] = (model.decoder_width, E)
        held["decoder_depth"] = (model.decoder_depth, _depth(raw, "decoder.blocks."))
    for name, (said, is_held) in held.items():
        if said != is_held:
            raise WeightsError(
                f"{raw.path}: its description says {name} {said}, its tensors {is_held}; restore "
                "the folder as it was written"
            )


def _shape(raw: RawWeights, name: str, *, ndim: int) -> tuple[int, ...]:
    shape = tuple(raw.tensors[name].shape) if name in raw.tensors else ()
    if len(shape) != ndim or 0 in shape:
        raise WeightsError(
            f"{raw.path}: {raw.spell(name)} is {f'of shape {shape}' if shape else 'missing'}, "
            f"expected {ndim} dimensions; get the whole file"
        )
    return shape


def _depth(raw: RawWeights, prefix: str) -> int:
    # Distinct numbers, not the largest one: a gap then shows as missing and left-over blocks.
    return len({name.split(".")[2] for name in raw.tensors if name.startswith(prefix)})
