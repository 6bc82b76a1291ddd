"""Read weights of any supported format into tensors with mae's names.

To add a format, add a file like `formats/lightly.py` and its entry in `LAYOUTS`; if the format can
be written, add its name to `Target` in `given.py` as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Unpack

from torch import Tensor

from mae.errors import WeightsError
from mae.runs.checkpoint import latest_checkpoint
from mae.runs.directory import RunDir
from mae.runs.sharded import METADATA
from mae.weights.formats import dinov2, facebook, huggingface, lightly, native, openmmlab, vitdet
from mae.weights.formats.name_table import (
    Layout,
    Metadata,
    find_naming,
    fold_layer_scale,
    fuse_qkv,
)
from mae.weights.given import LoadOptions
from mae.weights.io.hub import local
from mae.weights.io.safe_load import INDEXES, read_tensors

LAYOUTS: tuple[Layout, ...] = (
    native.LAYOUT,
    facebook.LAYOUT,
    huggingface.LAYOUT,
    dinov2.LAYOUT,
    openmmlab.LAYOUT,
    lightly.LAYOUT,
    vitdet.LAYOUT,
    facebook.TIMM,
)


class RawWeights(NamedTuple):
    """Weights read from a path, before a model is built."""

    path: Path
    """The file with the tensors."""
    format: str
    tensors: dict[str, Tensor]
    """By mae's names; may be views of the file."""
    metadata: Metadata
    rename: Callable[[str], str]
    """Translates one of mae's names to the file's."""
    given: LoadOptions = LoadOptions()
    """What the user says of the network."""
    notes: tuple[str, ...] = ()
    """What was loaded from the file and what was skipped."""

    @property
    def has_decoder(self) -> bool:
        """Whether any tensor belongs to a decoder."""
        return any(name.startswith("decoder.") for name in self.tensors)

    @property
    def is_classifier(self) -> bool:
        """Whether there is a classifier's head, and no decoder."""
        return "head.weight" in self.tensors and not self.has_decoder

    @property
    def is_segmenter(self) -> bool:
        """Whether there is a segmenter's head."""
        return "head.classify.conv.weight" in self.tensors

    @property
    def is_detector(self) -> bool:
        """Whether there are the proposal network and heads of mae's detectors."""
        return "rpn.head.cls_logits.weight" in self.tensors

    def encoder(self) -> RawWeights:
        """Return the weights without the tensors of a decoder or a head."""
        own = {name: t for name, t in self.tensors.items() if name.startswith("encoder.")}
        return self._replace(tensors=own)


Source = str | os.PathLike[str] | RawWeights
"""Folder of mae or transformers, run, checkpoint, file in a supported layout, `hf:owner/name`, or
weights that are already read."""


def read_weights(path: Source, *, values: bool = True, **given: Unpack[LoadOptions]) -> RawWeights:
    """Read weights from a folder, a run, a checkpoint, a file or `hf:owner/name`.

    Args:
        path: location of the weights; weights that are already read are returned as they are.
        values: whether to keep the values of the tensors; without, they are on the meta device.
        given: what the file may not say of the network, see `Given`.

    Raises:
        WeightsError: for a path without weights, or weights that cannot be read or recognised.
    """
    if isinstance(path, RawWeights):
        return path
    where = local(path)
    while True:
        newest = latest_checkpoint(RunDir(where).checkpoints)
        # A run in progress may delete its checkpoint while it is read: then read the newest again.
        try:
            raw = _read(find_file(where), values=values, given=given)
            if raw.path.exists() or latest_checkpoint(RunDir(where).checkpoints) == newest:
                return raw
        except (OSError, WeightsError):
            if latest_checkpoint(RunDir(where).checkpoints) == newest:
                raise


def _read(file: Path, *, values: bool, given: LoadOptions) -> RawWeights:
    tensors, beside, notes = read_tensors(file, take=given.get("take"))
    if not values:
        tensors = {name: tensor.to("meta") for name, tensor in tensors.items()}
    raw = name_tensors(file, tensors, beside)
    return raw._replace(given=given, notes=notes + raw.notes)


def name_tensors(
    file: Path, tensors: Mapping[str, Tensor], beside: Mapping[Any, Any]
) -> RawWeights:
    """Detect the layout of the tensors of a file, rename them to mae's names, read its metadata.

    Args:
        file: the file they were read from; config files next to it are read.
        tensors: by the file's names; may be on the meta device.
        beside: other contents of the file.

    Raises:
        WeightsError: for unknown names, or config files that cannot be read.
    """
    naming = find_naming(tensors, LAYOUTS)
    if naming is None:
        raise WeightsError(
            f"{file}: holds {len(tensors)} tensors of unknown names {sorted(tensors)[:5]}, "
            f"expected those of {', '.join(layout.name for layout in LAYOUTS)}"
        )
    names = naming.to_ours(tensors)
    ours = {name: tensors[theirs] for theirs, name in names.items()}
    if len(ours) < len(names):
        twice = [n for n, ours_ in names.items() if list(names.values()).count(ours_) > 1]
        raise WeightsError(f"{file}: holds one tensor under several names: {'; '.join(twice[:4])}")
    for prepared in (fuse_qkv, fold_layer_scale):
        ours = prepared(ours, rename=naming.to_theirs, where=str(file))
    description = beside.get("mae")
    # A non-string value was not written by mae, and may be nested too deeply to print.
    if isinstance(description, str):
        metadata = native.parse_description(description, where=str(file))
    else:
        metadata = naming.layout.read_metadata(beside, file, ours)
    raw = RawWeights(file, naming.layout.name, ours, metadata, naming.to_theirs)
    return raw._replace(notes=_outside(file, tensors, prefix=naming.prefix))


def _outside(file: Path, names: Iterable[str], *, prefix: str) -> tuple[str, ...]:
    """Return a note on tensors that are not part of the network."""
    left = [name for name in names if not name.startswith(prefix)]
    if not left:
        return ()
    more = " ..." if len(left) > 3 else ""
    which = f"{len(left)} tensors beside {prefix}* ({'; '.join(left[:3])}{more})"
    return (f"{file}: left {which}: no part of the network",)


def find_file(path: Path) -> Path:
    """Find the file, or the index of the files, that holds the tensors of a path.

    In this order: 1. the file itself; 2. the tensors in a folder of mae or transformers, or in a
    checkpoint; 3. the weights of a finished run; 4. the newest checkpoint of an unfinished run.

    Raises:
        WeightsError: for a path without weights.
    """
    if path.exists() and not path.is_dir():
        return path
    if not path.is_dir():
        raise WeightsError(f"{path.absolute()}: no such file or folder")
    run = RunDir(path)
    for folder in (path, run.weights, latest_checkpoint(run.checkpoints)):
        for name in (native.TENSORS, INDEXES[0], "pytorch_model.bin", INDEXES[1], METADATA):
            if folder is not None and (folder / name).is_file():
                return folder / name
    names = ", ".join(sorted(p.name for p in path.iterdir())[:5])
    raise WeightsError(
        f"{path}: holds {names or 'nothing'}; expected {native.TENSORS}, or a run with a checkpoint"
    )
