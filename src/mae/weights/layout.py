"""What a format of weights is: tables of names beside ours, and what else its files tell."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mae.errors import WeightsError

Format = Literal["mae", "facebook", "huggingface", "openmmlab", "lightly"]

# What a name is given to that stands in no table: nothing of ours begins so, whence it is left
# over in every model.
_NOWHERE = "encoder.?"

PARTS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
"""Layers of a block, by our names."""


def probe_norm(prefix: str) -> dict[str, str]:
    """Give the names of a linear probe's batch norm, which a format puts behind a prefix."""
    names = ("running_mean", "running_var", "num_batches_tracked")
    return {f"head.bn.{name}": f"{prefix}.{name}" for name in names}


class Table(NamedTuple):
    """Our names beside a format's, without the `.weight` and `.bias` of layers."""

    plain: Mapping[str, str]
    """Parameters and layers: encoder.cls_token, encoder.norm, head ..."""
    blocks: Mapping[str, str]
    """What comes before the number of a block: encoder.blocks, decoder.blocks."""
    parts: Mapping[str, str]
    """Layers of a block; attn.q, attn.k and attn.v where the format keeps them apart."""

    def inverse(self) -> Table:
        """Give the table of the other direction."""
        return Table(*({theirs: ours for ours, theirs in part.items()} for part in self))

    def translate(self, name: str) -> str | None:
        """Give the other name of a tensor, or nothing where the table does not have it."""
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
    """What lies beside the tensors of a file tells."""

    fields: Mapping[str, Any] = {}
    """Fields of `ModelConfig`."""
    notes: tuple[str, ...] = ()
    """What had to be assumed."""
    class_names: tuple[str, ...] = ()
    """Of a classifier, in the order of its scores."""


class Layout(NamedTuple):
    """A format that is read."""

    name: Format
    tables: tuple[Table, ...]
    """Its spellings; that which explains most names of a file is taken."""
    facts: Callable[[Mapping[str, Any], Path], Facts] = lambda _beside, _file: Facts()
    """Read what lies beside the tensors, which came from the given file."""


class Spelling(NamedTuple):
    """How one file spells our names."""

    layout: Layout
    table: Table
    prefix: str
    """Before every name of the file, where a wrapper put it: module. ..."""

    def to_ours(self, names: Iterable[str]) -> dict[str, str]:
        """Give our name for each of the file's; every one gets another."""
        table = self.table.inverse()
        found = {name: table.translate(name.removeprefix(self.prefix)) for name in names}
        return {name: ours or _NOWHERE + name for name, ours in found.items()}

    def to_theirs(self, name: str) -> str:
        """Spell one of our names as the file does."""
        if name.startswith(_NOWHERE):
            return name.removeprefix(_NOWHERE)
        if theirs := self.table.translate(name):
            return self.prefix + theirs
        parts = [self.table.translate(part) for part in split_names(name)]
        return " + ".join(self.prefix + part for part in parts if part) or name


def find_spelling(names: Iterable[str], layouts: Iterable[Layout]) -> Spelling | None:
    """Find the spelling that explains most names of a file, if it is at least half of them."""
    given = list(names)
    best, most = None, max(1, len(given) / 2)
    for layout in layouts:
        for table in layout.tables:
            inverse = table.inverse()
            for prefix in _prefixes(given):
                found = (inverse.translate(name.removeprefix(prefix)) for name in given)
                if (explained := sum(name is not None for name in found)) >= most:
                    best, most = Spelling(layout, table, prefix), explained + 0.5
    return best


def _prefixes(names: list[str]) -> list[str]:
    """List what may be a wrapper's: nothing, and the segments that all names begin with."""
    common = list[str]()
    for segments in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(segments)) > 1:
            break
        common.append(f"{segments[0]}.")
    return ["".join(common[:n]) for n in range(len(common) + 1)]


def split_names(name: str) -> list[str]:
    """Name the query, key and value of a fused layer: attn.qkv.bias to attn.q.bias ..."""
    return [name.replace(".attn.qkv.", f".attn.{part}.") for part in "qkv"]


def fuse_qkv(
    tensors: Mapping[str, Tensor], *, spell: Callable[[str], str], where: str
) -> dict[str, Tensor]:
    """Stack queries, keys and values into one matrix, rows in this order.

    Raises:
        WeightsError: where one is missing, or they differ in shape.
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
    """Cut each fused matrix into queries, keys and values: the inverse of `fuse_qkv`."""
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".attn.qkv." in name:
            split |= zip(split_names(name), (t.contiguous() for t in tensor.chunk(3)), strict=True)
        else:
            split[name] = tensor
    return split


def spelled(table: Table, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our tensors by a table that has all of them."""
    found = {table.translate(name): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in found.items() if name is not None}
