"""Name tables of weight formats, and what else a format consists of.

A format is a `Layout`: tables of names, a reader of its metadata, and perhaps a writer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mae.config.dense import DenseConfig, HeadConfig
from mae.config.model import ModelConfig
from mae.config.objective import ObjectiveConfig
from mae.errors import WeightsError
from mae.weights.given import HeadPool

# Prefix for names that are in no table. No name of mae starts with it, so such a tensor is
# unexpected in every model.
UNKNOWN = "encoder.?"

# Name segments that torch adds for compiled, sharded or checkpointed modules.
_WRAPPERS = re.compile(
    r"(^|\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
)
_SCALE = re.compile(r"encoder\.blocks\.\d+\.scale[12]")
_SCALED = {"scale1": "attn.proj", "scale2": "mlp.fc2"}
_NUMBERED = re.compile(r"(?P<before>.*?\.)(?P<number>\d+)(?P<layer>\..+)")

Table = Mapping[str, str]
"""mae's name to a format's, of each parameter and layer, without `.weight` and `.bias`. In the
layers of a block, `*` stands for its number. attn.q, attn.k and attn.v stand for attn.qkv if the
format stores them separately."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """mae's own description of weights: its config.json, also stored in files of other formats."""

    format: Literal["mae"] = "mae"
    format_version: Literal[1] = 1
    library: str = field(default_factory=lambda: f"mae-vision {metadata.version('mae-vision')}")
    """Name and version of the library that wrote it."""
    model: ModelConfig
    """The network and its pixel scaling."""
    objective: ObjectiveConfig | None = None
    """Mask and target of the pre-training; none: the weights have no decoder."""
    facts: dict[str, object] = field(default_factory=dict)
    """Provenance of the weights: recipe, data, steps ..."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierDescription(Description):
    """Description of a classifier."""

    class_names: tuple[str, ...]
    """In the order of the scores."""
    pool: HeadPool
    """Pooled feature that the head classifies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmenterDescription(Description):
    """Description of a segmenter."""

    class_names: tuple[str, ...]
    """In the order of the logits."""
    dense: DenseConfig
    """How its encoder sees an image."""
    head: HeadConfig
    """Its head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorDescription(Description):
    """Description of a detector."""

    class_names: tuple[str, ...]
    """In the order of the classes."""
    dense: DenseConfig
    """How its encoder sees an image."""
    masks: bool
    """Whether it finds masks too."""
    pyramid_channels: int
    """Channels of its pyramid and heads."""


class Metadata(NamedTuple):
    """What a file, or another file next to it, says about its network."""

    fields: Mapping[str, Any] = {}
    """Known fields of `ModelConfig` and `ObjectiveConfig`."""
    source: str = ""
    """Their source: described, by config.json, by the arguments of a training run ..."""
    assumed: Mapping[str, Any] = {}
    """Usual values in this format for fields that are not known."""
    gelu: bool = False
    """Whether the exact GELU is confirmed, the only supported activation."""
    pool: str | None = None
    """Pooling of the head if known: mean, cls, or an unsupported one."""
    notes: tuple[str, ...] = ()
    """Further assumptions."""
    class_names: tuple[str, ...] = ()
    """Class names of a classifier, segmenter or detector, in the order of its scores."""
    segmenter: SegmenterDescription | None = None
    """Of a segmenter."""
    detector: DetectorDescription | None = None
    """Of a detector."""
    model: ModelConfig | None = None
    """The whole network; only from a `Description`."""
    facts: Mapping[str, object] = {}
    """Provenance of the weights; only from a `Description`."""


class Layout(NamedTuple):
    """A format that can be read or written."""

    name: str
    tables: tuple[Table, ...] = ()
    """Its naming schemes; the one that matches most names of a file is used."""
    read_metadata: Callable[[Mapping[str, Any], Path, Mapping[str, Tensor]], Metadata] = (
        lambda _beside, _file, _tensors: Metadata()
    )
    """Reads the metadata, given the other contents of the file, its path, and the tensors by mae's
    names."""
    write: Callable[[Path, Mapping[str, Tensor], Description], object] | None = None
    """Writes a file or folder, given the tensors by mae's names; None if it can only be read."""
    refuses: Callable[[Description, Collection[str]], str | None] | None = None
    """Returns why it cannot hold a model with tensors of these names; None if it can."""


LAYERS = {name: name for name in "norm1 attn.qkv attn.proj norm2 mlp.fc1 mlp.fc2".split()}
"""Layers of a block, by mae's names, for the tables of formats that share them."""


def block_names(ours: str, theirs: str, layers: Mapping[str, str]) -> dict[str, str]:
    """Return the part of a table for numbered blocks: their prefixes and layers in both namings."""
    return {f"{ours}.*.{layer}": f"{theirs}.*.{other}" for layer, other in layers.items()}


def norm_buffers(ours: str, theirs: str) -> dict[str, str]:
    """Return the part of a table for the buffers of a batch norm."""
    names = ("running_mean", "running_var", "num_batches_tracked")
    return {f"{ours}.{name}": f"{theirs}.{name}" for name in names}


def probe_norm(prefix: str) -> dict[str, str]:
    """Return the name table of a linear probe's batch norm, under a format's prefix."""
    return norm_buffers("head.bn", prefix)


def inverse(table: Table) -> dict[str, str]:
    """Return the table of the inverse translation."""
    return {theirs: ours for ours, theirs in table.items()}


def translate(table: Table, name: str) -> str | None:
    """Translate the name of a tensor; None if the table does not have it."""
    names = {} if "*" in name else {name: ""}
    if numbered := _NUMBERED.fullmatch(name):
        names[f"{numbered['before']}*{numbered['layer']}"] = numbered["number"]
    for known, number in names.items():
        layer, _, kind = known.rpartition(".")
        if known in table:
            return table[known].replace("*", number)
        if layer in table and kind in ("weight", "bias"):
            return f"{table[layer]}.{kind}".replace("*", number)
    return None


class Naming(NamedTuple):
    """Naming scheme of one file."""

    layout: Layout
    table: Table
    prefix: str
    """Prefix added to the names by a wrapper: module. ..."""

    def to_ours(self, names: Iterable[str]) -> dict[str, str]:
        """Return mae's name for each name of the file that has the prefix."""
        table = inverse(self.table)
        inside = [name for name in names if name.startswith(self.prefix)]
        found = {name: translate(table, _unwrapped(name, self.prefix)) for name in inside}
        return {name: ours or UNKNOWN + name for name, ours in found.items()}

    def to_theirs(self, name: str) -> str:
        """Translate one of mae's names to the file's."""
        if name.startswith(UNKNOWN):
            return name.removeprefix(UNKNOWN)
        parts = [name] if translate(self.table, name) else split_names(name)
        found = [translate(self.table, part) for part in parts]
        return " + ".join(self.prefix + part for part in found if part) or name


def find_naming(names: Iterable[str], layouts: Iterable[Layout]) -> Naming | None:
    """Find the naming scheme that matches most names of a file, if at least half of them."""
    given = list(names)
    best, most = None, max(1, len(given) / 2)
    for layout in layouts:
        for table in layout.tables:
            ours = inverse(table)
            for prefix in _prefixes(given):
                inside = (_unwrapped(name, prefix) for name in given if name.startswith(prefix))
                known = sum(translate(ours, name) is not None for name in inside)
                if known >= most:
                    best, most = Naming(layout, table, prefix), known + 0.5
    return best


def _prefixes(names: list[str]) -> list[str]:
    """List candidate wrapper prefixes, longest first: those of more than half of the names."""
    counts = Counter[str]()
    for name in names:
        segments = name.split(".")[:-1]
        counts.update(f"{'.'.join(segments[: n + 1])}." for n in range(len(segments)))
    # More than half, not all: a file may also hold, for example, a loss with weights.
    found = [prefix for prefix, count in counts.items() if 2 * count > len(names)]
    return [*sorted(found, key=len, reverse=True), ""]


def _unwrapped(name: str, prefix: str) -> str:
    """Remove a prefix, and the segments that compiling or sharding adds within a name."""
    return _WRAPPERS.sub(r"\1", name.removeprefix(prefix))


def split_names(name: str) -> list[str]:
    """Return the query, key and value names of a fused layer: attn.qkv.bias to attn.q.bias ..."""
    return [name.replace(".attn.qkv.", f".attn.{part}.") for part in "qkv"]


def fuse_qkv(
    tensors: Mapping[str, Tensor], *, rename: Callable[[str], str], where: str
) -> dict[str, Tensor]:
    """Concatenate query, key and value weights into one matrix, rows in this order.

    Raises:
        WeightsError: if one is missing, or they differ in shape.
    """
    fused: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = re.sub(r"\.attn\.[qkv]\.", ".attn.qkv.", name)
        if whole == name:
            fused[name] = tensor
        elif whole not in fused:
            absent = [rename(part) for part in split_names(whole) if part not in tensors]
            if absent:
                raise WeightsError(
                    f"{where}: {len(absent)} missing ({'; '.join(absent)}) beside {rename(name)}; "
                    "is it whole?"
                )
            parts = [tensors[part] for part in split_names(whole)]
            if len({part.shape for part in parts}) != 1 or not tensor.ndim:
                shapes = [list(part.shape) for part in parts]
                raise WeightsError(f"{where}: {rename(whole)} have shapes {shapes}, expected equal")
            fused[whole] = torch.cat(parts)
    return fused


def fold_layer_scale(
    tensors: Mapping[str, Tensor], *, rename: Callable[[str], str], where: str
) -> dict[str, Tensor]:
    """Multiply the layers at the end of each residual branch by their layer scale.

    The scales, `encoder.blocks.*.scale1` and `scale2`, are factors per channel of the branch's
    output, so the function is the same without them.

    Raises:
        WeightsError: if a scale does not fit its layer.
    """
    folded = {name: tensor for name, tensor in tensors.items() if not _SCALE.fullmatch(name)}
    for name in tensors.keys() - folded.keys():
        layer = _SCALED[name[-6:]]
        scale, block = tensors[name], name[:-6]
        for kind in ("weight", "bias"):
            whole = f"{block}{layer}.{kind}"
            if whole not in folded:  # reported when the tensors are loaded
                continue
            if scale.ndim != 1 or folded[whole].shape[:1] != scale.shape:
                raise WeightsError(
                    f"{where}: {rename(name)} is of shape {[*scale.shape]}, {rename(whole)} of "
                    f"{[*folded[whole].shape]}; expected one factor per row; is it whole?"
                )
            factor = scale.float().reshape(-1, *[1] * (folded[whole].ndim - 1))
            folded[whole] = folded[whole].float() * factor
    return folded


def split_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split each fused matrix into query, key and value: the inverse of `fuse_qkv`."""
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".attn.qkv." in name:
            split |= zip(split_names(name), (t.contiguous() for t in tensor.chunk(3)), strict=True)
        else:
            split[name] = tensor
    return split


def renamed(table: Table, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors from mae's names by a table; names not in the table are dropped."""
    found = {translate(table, name): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in found.items() if name is not None}
