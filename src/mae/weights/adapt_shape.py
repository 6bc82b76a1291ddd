"""Resize weights to another image size or number of channels.

A rule maps images with the new channels to the input of the old network, and its prediction back
to the new channels. Both maps are matrices, multiplied into the weights (decision 0013).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mae.config.run import ChannelRule, ModelConfig
from mae.errors import ConfigError
from mae.model.positions import resize_positions


class Resized(NamedTuple):
    """Tensors that fit another model, and one note per change."""

    tensors: dict[str, Tensor]
    notes: list[str]


def resize_weights(
    tensors: Mapping[str, Tensor],
    fields: Mapping[str, Any],
    *,
    to: ModelConfig,
    rule: ChannelRule | None = None,
) -> Resized:
    """Adapt the tensors of a model to one that differs in image size or channels.

    Args:
        tensors: by mae's names; tensors whose shape does not match the old model are unchanged.
        fields: `image_size` and `channels` of the old model.
        to: the new model; patch size and widths must be the same.
        rule: how to change the number of channels; None means "repeat".

    Raises:
        ConfigError: for a rule that has no effect or cannot be applied.
    """
    p, resized, notes = to.patch_size, dict(tensors), list[str]()
    (H, W), channels = fields["image_size"], fields["channels"]
    grid = (H // p, W // p)
    if grid != to.grid:
        for name in tensors.keys() & {"encoder.pos_embed", "decoder.pos_embed"}:
            table = tensors[name]
            if table.ndim == 3 and table.shape[:2] == (1, 1 + grid[0] * grid[1]):
                resized[name] = resize_positions(table.float(), grid_from=grid, grid_to=to.grid)
        notes.append(f"positions: resized from {grid} to {to.grid} patches")
    if channels == to.channels:
        if rule is not None:
            raise ConfigError(
                f"init_channels: {rule} has no effect, weights and images both have {channels} "
                "channels; drop it"
            )
        return Resized(resized, notes)
    rule = rule or "repeat"
    name = "encoder.patch_embed.proj.weight"
    if name in tensors and tensors[name].ndim == 4 and tensors[name].shape[1] == channels:
        resized[name] = resize_projection(tensors[name], channels=to.channels, rule=rule)
    for name in ("decoder.pred.weight", "decoder.pred.bias"):
        if name in tensors and tensors[name].shape[:1] == (p * p * channels,):
            resized[name] = resize_prediction(
                tensors[name], channels_from=channels, channels=to.channels, rule=rule
            )
    notes.append(f"channels: {channels} of the weights made {to.channels} by the rule {rule}")
    return Resized(resized, notes)


def resize_projection(weight: Tensor, *, channels: int, rule: ChannelRule) -> Tensor:
    """Adapt a patch projection to another number of channels.

    Args:
        weight: D C p p.
        channels: number of channels of the new images.
        rule: see `input_matrix`.

    Returns:
        D `channels` p p float32. Applied to a new image, it equals the old projection applied to
        that image mapped by `input_matrix`.
    """
    matrix = input_matrix(weight.shape[1], channels, rule=rule)
    return torch.einsum("dcij,cn->dnij", weight.float(), matrix)


def resize_prediction(
    values: Tensor, *, channels_from: int, channels: int, rule: ChannelRule
) -> Tensor:
    """Adapt a prediction head to another number of channels.

    Args:
        values: weight of shape P E, or bias of shape P; P in the order row, column, channel.
        channels_from: number of channels of the old images.
        channels: number of channels of the new images.
        rule: see `output_matrix`.

    Returns:
        The same tensor with P for the new channels, float32.
    """
    matrix = output_matrix(channels_from, channels, rule=rule)
    pixels = values.float().reshape(-1, channels_from, *values.shape[1:])  # p*p C (E)
    return torch.einsum("nc,qc...->qn...", matrix, pixels).flatten(0, 1)


def input_matrix(old: int, new: int, *, rule: ChannelRule) -> Tensor:
    """Return the matrix that maps an image of `new` channels to the `old` input channels.

    "repeat": each old channel c is the mean of the new channels c, c + old, c + 2 old ..., or, if
    there are fewer new channels, a copy of the new channel c mod `new`. "mean": each old channel
    is the mean of all new ones. "zero": the first new channels are the old ones, and the network
    ignores the rest.

    Returns:
        `old` x `new`; each row sums to 1, so that grey keeps its brightness.

    Raises:
        ConfigError: for "zero" with fewer channels than before, which would drop some.
    """
    matrix = _copies(old, new, rule=rule)
    return matrix / matrix.sum(dim=1, keepdim=True)


def output_matrix(old: int, new: int, *, rule: ChannelRule) -> Tensor:
    """Return the matrix that maps a prediction of `old` channels to `new` ones.

    It reverses `input_matrix`.
    "repeat": each new channel c is the old channel c mod `old`, or the mean of the old channels
    that `input_matrix` copies from it. "mean": each is the mean of all old ones. "zero": the first
    are the old ones, and the rest are predicted as 0.

    Returns:
        `new` x `old`.
    """
    matrix = _copies(old, new, rule=rule).T
    return matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1)


def _copies(old: int, new: int, *, rule: ChannelRule) -> Tensor:
    """Return which new channels each old one corresponds to: `old` x `new` of 0 and 1."""
    if rule == "mean":
        return torch.ones(old, new)
    if rule == "zero":
        if new < old:
            raise ConfigError(
                f"init_channels: zero would lose {old - new} of {old} channels, expected repeat "
                "or mean for fewer channels"
            )
        return torch.eye(old, new)
    a, b = torch.arange(old)[:, None], torch.arange(new)[None, :]
    return (a % min(old, new) == b % min(old, new)).float()
