"""Name tables and metadata types shared by all weight formats."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mae.errors import WeightsError

Format = Literal["mae", "facebook", "huggingface", "openmmlab", "lightly"]

# Prefix for names that are in no table. No name of mae starts with it, so such a tensor is
# unexpected in every model.
NOWHERE = "encoder.?"

# Name segments that torch adds for compiled, sharded or checkpointed modules.
_WRAPPERS = re.compile(
    r"(^|\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
)

PARTS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
"""Layers of a block, by mae's names."""


def probe_norm(prefix: str) -> dict[str, str]:
    """Return the name table of a linear probe's batch norm, under a format's prefix."""
    names = ("running_mean", "running_var", "num_batches_tracked")
    return {f"head.bn.{name}": f"{prefix}.{name}" for name in names}


class Table(NamedTuple):
    """Translation from mae's names to a format's, without `.weight` and `.bias`."""

    plain: Mapping[str, str]
    """Parameters and layers: encoder.cls_token, encoder.norm, head ..."""
    blocks: Mapping[str, str]
    """Prefixes before the number of a block: encoder.blocks, decoder.blocks."""
    parts: Mapping[str, str]
    """Layers of a block; attn.q, attn.k and attn.v if the format stores them separately."""

    def inverse(self) -> Table:
        """Return the table of the inverse translation."""
        return Table(*({theirs: ours for ours, theirs in part.items()} for part in self))

    def translate(self, name: str) -> str | None:
        """Translate the name of a tensor; None if the table does not have it."""
        if name in self.plain:
            return self.plain[name]
        layer, _, kind = name.rpartition(".")
        if kind not in ("weight", "bias"):
            return None
        if layer in self.plain:
            return f"{self.plain[layer]}.{kind}"
        for before, other in self.blocks.items():
            found = re.fullmatch(rf"{re.escape(before)}\.(\d+)\.(.+)", layer)
            if found and found[2] in self.parts:
                return f"{other}.{found[1]}.{self.parts[found[2]]}.{kind}"
        return None


class Facts(NamedTuple):
    """Facts about a network from metadata in or next to its weights."""

    fields: Mapping[str, Any] = {}
    """Known fields of `ModelConfig`."""
    source: str = ""
    """Their source: config.json, the args of a training run ..."""
    assumed: Mapping[str, Any] = {}
    """Usual values in this format for fields that are not known."""
    gelu: bool = False
    """Whether the metadata confirms the exact GELU, the only supported activation."""
    pool: str | None = None
    """Pooling of the head if known: mean, cls, or an unsupported one."""
    notes: tuple[str, ...] = ()
    """Further assumptions."""
    class_names: tuple[str, ...] = ()
    """Class names of a classifier, in the order of its scores."""


class Layout(NamedTuple):
    """A format that can be read."""

    name: Format
    tables: tuple[Table, ...]
    """Its naming schemes; the one that matches most names of a file is used."""
    facts: Callable[[Mapping[str, Any], Path, Mapping[str, Tensor]], Facts] = (
        lambda _beside, _file, _tensors: Facts()
    )
    """Reads the metadata, given the other contents of the file, its path, and the tensors by mae's
    names."""


class Spelling(NamedTuple):
    """Naming scheme of one file."""

    layout: Layout
    table: Table
    prefix: str
    """Prefix added to the names by a wrapper: module. ..."""

    def to_ours(self, names: Iterable[str]) -> dict[str, str]:
        """Return mae's name for each name of the file that has the prefix."""
        table = self.table.inverse()
        inside = [name for name in names if name.startswith(self.prefix)]
        found = {name: table.translate(_bare(name, self.prefix)) for name in inside}
        return {name: ours or NOWHERE + name for name, ours in found.items()}

    def to_theirs(self, name: str) -> str:
        """Translate one of mae's names to the file's."""
        if name.startswith(NOWHERE):
            return name.removeprefix(NOWHERE)
        if theirs := self.table.translate(name):
            return self.prefix + theirs
        parts = [self.table.translate(part) for part in split_names(name)]
        return " + ".join(self.prefix + part for part in parts if part) or name


def find_spelling(names: Iterable[str], layouts: Iterable[Layout]) -> Spelling | None:
    """Find the naming scheme that matches most names of a file, if at least half of them."""
    given = list(names)
    best, most = None, max(1, len(given) / 2)
    for layout in layouts:
        for table in layout.tables:
            inverse = table.inverse()
            for prefix in _prefixes(given):
                inside = (_bare(name, prefix) for name in given if name.startswith(prefix))
                explained = sum(inverse.translate(name) is not None for name in inside)
                if explained >= most:
                    best, most = Spelling(layout, table, prefix), explained + 0.5
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


def _bare(name: str, prefix: str) -> str:
    """Remove a prefix, and the segments that compiling or sharding adds within a name."""
    return _WRAPPERS.sub(r"\1", name.removeprefix(prefix))


def split_names(name: str) -> list[str]:
    """Return the query, key and value names of a fused layer: attn.qkv.bias to attn.q.bias ..."""
    return [name.replace(".attn.qkv.", f".attn.{part}.") for part in "qkv"]


def fuse_qkv(
    tensors: Mapping[str, Tensor], *, spell: Callable[[str], str], where: str
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
            parts = {part: tensors.get(part) for part in split_names(whole)}
            absent = [spell(part) for part, found in parts.items() if found is None]
            if absent:
                raise WeightsError(
                    f"{where}: {len(absent)} missing ({'; '.join(absent)}) beside {spell(name)}; "
                    "is it whole?"
                )
            found = [part for part in parts.values() if part is not None]
            if len({part.shape for part in found}) != 1 or not found[0].ndim:
                shapes = [list(part.shape) for part in found]
                raise WeightsError(f"{where}: {spell(whole)} have shapes {shapes}, expected equal")
            fused[whole] = torch.cat(found)
    return fused


def split_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split each fused matrix into query, key and value: the inverse of `fuse_qkv`."""
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".attn.qkv." in name:
            split |= zip(split_names(name), (t.contiguous() for t in tensor.chunk(3)), strict=True)
        else:
            split[name] = tensor
    return split


def spelled(table: Table, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors from mae's names by a table; names not in the table are dropped."""
    found = {table.translate(name): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in found.items() if name is not None}
