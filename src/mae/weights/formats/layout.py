"""What a weight format consists of: name tables, a reader of its metadata, perhaps a writer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from mae.config.model import ModelConfig
from mae.config.objective import ObjectiveConfig
from mae.weights.given import HeadPool

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
    """Class names of a classifier, in the order of its scores."""
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
