"""Resize weights for another image size or channel count.

A rule says how pictures of the new channels are shown to a network of the old ones, and how its
prediction is read back; both are matrices, multiplied into the weights (decision 0013).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mae.config.run import ChannelRule, ModelConfig
from mae.errors import ConfigError
from mae.model.positions import resize_positions


class Adapted(NamedTuple):
    """Tensors that fit another model, and a line for each thing that was changed."""

    tensors: dict[str, Tensor]
    notes: list[str]


def adapt(
    tensors: Mapping[str, Tensor],
    *,
    image_size: tuple[int, int],
    channels: int,
    to: ModelConfig,
    rule: ChannelRule | None = None,
) -> Adapted:
    """Make tensors of a model fit one that differs in picture size or channels.

    Args:
        tensors: by our names; those of a shape that the old model has not are left as they are.
        image_size: height and width of the old model.
        channels: of the old model.
        to: the new model; of the same patch and widths.
        rule: for other channels; none: "repeat".

    Raises:
        ConfigError: for a rule that has no effect or no meaning here.
    """
    p, made, notes = to.patch_size, dict(tensors), list[str]()
    grid = (image_size[0] // p, image_size[1] // p)
    if grid != to.grid:
        for name in tensors.keys() & {"encoder.pos_embed", "decoder.pos_embed"}:
            table = tensors[name]
            if table.ndim == 3 and table.shape[:2] == (1, 1 + grid[0] * grid[1]):
                made[name] = resize_positions(table.float(), grid_from=grid, grid_to=to.grid)
        notes.append(f"positions: resized from {grid} to {to.grid} patches")
    if channels == to.channels:
        if rule is not None:
            raise ConfigError(
                f"init_channels: {rule} has no effect, weights and pictures both have {channels} "
                "channels; drop it"
            )
        return Adapted(made, notes)
    rule = rule or "repeat"
    weight = tensors.get("encoder.patch_embed.proj.weight")
    if weight is not None and weight.ndim == 4 and weight.shape[1] == channels:
        made["encoder.patch_embed.proj.weight"] = adapt_projection(
            weight, channels=to.channels, rule=rule
        )
    for name in ("decoder.pred.weight", "decoder.pred.bias"):
        if name in tensors and tensors[name].shape[:1] == (p * p * channels,):
            made[name] = adapt_head(
                tensors[name], channels_from=channels, channels=to.channels, rule=rule
            )
    notes.append(f"channels: {channels} of the weights made {to.channels} by the rule {rule}")
    return Adapted(made, notes)


def adapt_projection(weight: Tensor, *, channels: int, rule: ChannelRule) -> Tensor:
    """Give a patch projection for pictures of other channels.

    Args:
        weight: D C p p.
        channels: of the new pictures.
        rule: see `shown`.

    Returns:
        D `channels` p p float32: of a new picture what the old gives of it `shown`.
    """
    matrix = shown(weight.shape[1], channels, rule=rule)
    return torch.einsum("dcij,cn->dnij", weight.float(), matrix)


def adapt_head(values: Tensor, *, channels_from: int, channels: int, rule: ChannelRule) -> Tensor:
    """Give a prediction head for pictures of other channels.

    Args:
        values: P E, its weight, or P, its bias; P in the order row, column, channel.
        channels_from: of the old pictures.
        channels: of the new pictures.
        rule: see `read_back`.

    Returns:
        The same with P of the new channels, float32.
    """
    matrix = read_back(channels_from, channels, rule=rule)
    places = values.float().reshape(-1, channels_from, *values.shape[1:])  # p*p C (E)
    return torch.einsum("nc,qc...->qn...", matrix, places).flatten(0, 1)


def shown(old: int, new: int, *, rule: ChannelRule) -> Tensor:
    """Say how a picture of `new` channels is shown to a network of `old` ones.

    "repeat": each old channel is the mean of the new ones c, c + old, c + 2 old ..., or, where
    there are fewer, a copy of the new channel c mod `new`. "mean": each old channel is the mean of
    all new ones. "zero": the first are the old ones, and the network does not see the rest.

    Returns:
        `old` x `new`; the rows sum to 1, so that grey stays as bright as it was.

    Raises:
        ConfigError: for "zero" with fewer channels than before, which would lose some.
    """
    matrix = _copies(old, new, rule=rule)
    return matrix / matrix.sum(dim=1, keepdim=True)


def read_back(old: int, new: int, *, rule: ChannelRule) -> Tensor:
    """Say how a prediction of `old` channels is read as one of `new` ones: the way back of `shown`.

    "repeat": each new channel is the old channel c mod `old`, or the mean of those shown to it.
    "mean": the mean of all old ones. "zero": the first are the old ones, the rest is predicted 0.

    Returns:
        `new` x `old`.
    """
    matrix = _copies(old, new, rule=rule).T
    return matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1)


def _copies(old: int, new: int, *, rule: ChannelRule) -> Tensor:
    """Say which new channels an old one has to do with: `old` x `new` of 0 and 1."""
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
