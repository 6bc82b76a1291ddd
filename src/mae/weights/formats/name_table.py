"""Name tables of weights formats, and the facts that their files hold."""

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

# What a name is given to that stands in no table: nothing of ours begins so, whence it is left
# over in every model.
NOWHERE = "encoder.?"

# What torch puts before the names of a part that is compiled, sharded or checkpointed.
_WRAPPERS = re.compile(
    r"(^|\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
)

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
    """What is known of a network from what lies beside its tensors."""

    fields: Mapping[str, Any] = {}
    """Fields of `ModelConfig` that are said."""
    source: str = ""
    """What says them: config.json, the args of a training run ..."""
    assumed: Mapping[str, Any] = {}
    """Fields that are not said, as they usually are in this format."""
    gelu: bool = False
    """Whether the exact GELU, the only activation there is here, is said."""
    pool: str | None = None
    """What a head classifies, where that is said: mean, cls, or what no classifier here does."""
    notes: tuple[str, ...] = ()
    """What else had to be assumed."""
    class_names: tuple[str, ...] = ()
    """Of a classifier, in the order of its scores."""


class Layout(NamedTuple):
    """A format that is read."""

    name: Format
    tables: tuple[Table, ...]
    """Its spellings; that which explains most names of a file is taken."""
    facts: Callable[[Mapping[str, Any], Path, Mapping[str, Tensor]], Facts] = (
        lambda _beside, _file, _tensors: Facts()
    )
    """Read what lies beside the tensors: of what else the file holds, its path, and the tensors
    by our names."""


class Spelling(NamedTuple):
    """How one file spells our names."""

    layout: Layout
    table: Table
    prefix: str
    """Before the names of the file, where a wrapper put it: module. ..."""

    def to_ours(self, names: Iterable[str]) -> dict[str, str]:
        """Give our name for each of the file's that has the prefix."""
        table = self.table.inverse()
        inside = [name for name in names if name.startswith(self.prefix)]
        found = {name: table.translate(_bare(name, self.prefix)) for name in inside}
        return {name: ours or NOWHERE + name for name, ours in found.items()}

    def to_theirs(self, name: str) -> str:
        """Spell one of our names as the file does."""
        if name.startswith(NOWHERE):
            return name.removeprefix(NOWHERE)
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
                inside = (_bare(name, prefix) for name in given if name.startswith(prefix))
                explained = sum(inverse.translate(name) is not None for name in inside)
                if explained >= most:
                    best, most = Spelling(layout, table, prefix), explained + 0.5
    return best


def _prefixes(names: list[str]) -> list[str]:
    """List what may be a wrapper's, longest first: the segments that most names begin with."""
    counts = Counter[str]()
    for name in names:
        segments = name.split(".")[:-1]
        counts.update(f"{'.'.join(segments[: n + 1])}." for n in range(len(segments)))
    # Most, not all: a loss with weights of its own may lie beside the network.
    found = [prefix for prefix, count in counts.items() if 2 * count > len(names)]
    return [*sorted(found, key=len, reverse=True), ""]


def _bare(name: str, prefix: str) -> str:
    """Drop a prefix, and what compiling or sharding a part puts into the middle of a name."""
    return _WRAPPERS.sub(r"\1", name.removeprefix(prefix))


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
