"""From a path to tensors by our names: which file it stands for, whose names they are.

A new format is one file beside `facebook.py` (a name table and reshape rules, nothing else), a
branch in `read_weights` and, to write it, one in `convert.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from mae.config import ModelConfig
from mae.errors import WeightsError
from mae.fields import from_dict
from mae.train.checkpoint import latest_checkpoint
from mae.train.rundir import RunDir, read_record
from mae.weights import facebook
from mae.weights.files import read_tensors
from mae.weights.folder import (
    CONFIG,
    TENSORS,
    ClassifierDescription,
    Description,
    parse_description,
)
from mae.weights.hub import local

Format = Literal["mae", "facebook"]


class RawWeights(NamedTuple):
    """What a path holds, before a model is made of it."""

    path: Path
    """The file with the tensors."""
    format: Format
    tensors: dict[str, Tensor]
    """By our names; may be views of the file."""
    description: Description | None
    """What the file or its neighbour says of the model."""
    known: Mapping[str, Any]
    """Fields of the model that are told without a description."""
    spell: Callable[[str], str]
    """From one of our names to the file's own."""

    @property
    def has_decoder(self) -> bool:
        """Whether any tensor is a decoder's."""
        return any(name.startswith("decoder.") for name in self.tensors)


def read_weights(path: str | Path) -> RawWeights:
    """Read what a path stands for: a folder of ours, a run, a checkpoint, a file, `hf:owner/name`.

    Raises:
        WeightsError: for a path that holds no weights, or weights that cannot be read or named.
    """
    file = _find(local(path))
    tensors, beside = read_tensors(file)
    if any(name.startswith("encoder.") for name in tensors):
        return RawWeights(file, "mae", tensors, _neighbour(file), {}, spell=str)
    if facebook.recognises(tensors):
        ours = {facebook.to_ours(name): tensor for name, tensor in tensors.items()}
        said = parse_description(str(beside["mae"]), where=str(file)) if "mae" in beside else None
        known = facebook.training_facts(beside)
        return RawWeights(file, "facebook", ours, said, known, spell=facebook.to_theirs)
    raise WeightsError(
        f"{file}: holds {len(tensors)} tensors of unknown names {sorted(tensors)[:5]}, expected "
        "published PyTorch names (blocks.0. ...) or ours (encoder.blocks.0. ...)"
    )


def _find(path: Path) -> Path:
    """Find the file that holds the tensors of a path.

    1. the file itself; 2. a folder of ours, or a checkpoint; 3. the weights of a finished run;
    4. the newest checkpoint of an unfinished one.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsError(f"{path.absolute()}: no such file or folder")
    run = RunDir(path)
    for folder in (path, run.weights, latest_checkpoint(run.checkpoints)):
        if folder is not None and (folder / TENSORS).is_file():
            return folder / TENSORS
    held = ", ".join(sorted(p.name for p in path.iterdir())[:5])
    raise WeightsError(
        f"{path}: holds {held or 'nothing'}; expected {TENSORS}, or a run with a checkpoint"
    )


def _neighbour(file: Path) -> Description | None:
    """Read the description that lies beside a file of ours: its own, or that of its run."""
    config = file.with_name(CONFIG)
    if config.is_file():
        try:
            text = config.read_bytes()
        except OSError as error:
            raise WeightsError(f"{config}: cannot be read: {error.strerror}") from error
        return parse_description(text, where=str(config))
    manifest = file.absolute().with_name("manifest.json")
    if not manifest.is_file():
        return None
    run = manifest.parent.parent.parent
    if hashlib.sha256(file.read_bytes()).hexdigest().encode() not in manifest.read_bytes():
        raise WeightsError(f"{file}: is not what {manifest.name} says; name an older checkpoint")
    record = read_record(run)
    if record is None:
        raise WeightsError(f"{file}: is of a run without run.json; put it back")
    model = from_dict(ModelConfig, record["config"]["model"], where=str(RunDir(run).record))
    if "class_names" in record:
        names, pool = tuple(record["class_names"]), record["config"]["pool"]
        return ClassifierDescription(model=model, class_names=names, pool=pool)
    return Description(model=model)
