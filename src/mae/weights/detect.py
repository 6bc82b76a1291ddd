"""From a path to tensors by our names: which file it stands for, whose names they are.

A new format is a file beside `facebook.py` (a name table and reshape rules, nothing else), a line
in `read_weights` and, to write it, one in `convert.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from mae.config import ModelConfig, from_dict
from mae.errors import WeightsError
from mae.weights import facebook
from mae.weights.files import TensorFile, read_tensors
from mae.weights.folder import CONFIG, TENSORS, parse_description, read_description

Format = Literal["mae", "facebook"]


class RawWeights(NamedTuple):
    """What a path holds, before a model is made of it."""

    path: Path
    """The file with the tensors."""
    format: Format
    """Whose names and layout the file has."""
    tensors: dict[str, Tensor]
    """By our names; views of the file."""
    config: ModelConfig | None
    """The model, where the file or its neighbour describes it."""
    known: Mapping[str, Any]
    """Fields of the model that are told without a description."""
    spell: Callable[[str], str]
    """From one of our names to the file's own."""

    @property
    def has_decoder(self) -> bool:
        """Whether any tensor is a decoder's."""
        return any(name.startswith("decoder.") for name in self.tensors)


def read_weights(path: str | Path) -> RawWeights:
    """Read what a path stands for: a folder of ours, a run, a checkpoint or a file.

    Raises:
        WeightsError: for a path that holds no weights, or weights that cannot be read or named.
    """
    file = _find(Path(path))
    found = read_tensors(file)
    if any(name.startswith("encoder.") for name in found.tensors):
        return RawWeights(file, "mae", found.tensors, _neighbour(file), {}, str)
    if facebook.recognises(found.tensors):
        return RawWeights(
            file,
            "facebook",
            {facebook.to_ours(name): tensor for name, tensor in found.tensors.items()},
            _described(file, found),
            facebook.training_facts(found.beside),
            facebook.to_theirs,
        )
    raise WeightsError(
        f"{file}: holds {len(found.tensors)} tensors with unknown names "
        f"{sorted(found.tensors)[:5]}, expected the published PyTorch ones (blocks.0. ...) or "
        "ours (encoder.blocks.0. ...)"
    )


def _find(path: Path) -> Path:
    """Find the file that holds the tensors of a path.

    1. the file itself; 2. a folder of ours or a checkpoint; 3. the weights of a finished run;
    4. the newest checkpoint of an unfinished one.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsError(f"{path.absolute()}: no such file or folder")
    checkpoints = sorted(path.glob("checkpoints/step-*[0-9]"), key=lambda p: (len(p.name), p.name))
    for file in (
        path / TENSORS,
        path / "weights" / TENSORS,
        *(checkpoint / TENSORS for checkpoint in checkpoints[-1:]),
    ):
        if file.is_file():
            return file
    held = sorted(p.name for p in path.iterdir())[:5]
    raise WeightsError(
        f"{path}: holds {', '.join(held) or 'nothing'}; expected {TENSORS}, or a run with "
        "weights or a checkpoint"
    )


def _neighbour(file: Path) -> ModelConfig | None:
    """Read the configuration that lies beside a file of ours: its own, or that of its run."""
    if file.with_name(CONFIG).is_file():
        return read_description(file.with_name(CONFIG)).model
    manifest = file.absolute().with_name("manifest.json")
    if not manifest.is_file():
        return None
    record = manifest.parent.parent.parent / "run.json"
    try:
        digest = json.loads(manifest.read_bytes())[file.name]["sha256"]
        model = json.loads(record.read_bytes())["config"]["model"]
        with file.open("rb") as opened:
            whole = hashlib.file_digest(opened, "sha256").hexdigest() == digest
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WeightsError(f"{record}, {manifest}: cannot be read: {error}; restore them") from error
    if not whole:
        raise WeightsError(f"{file}: is not what was written (sha256); name an older checkpoint")
    return from_dict(ModelConfig, model, where=str(record))


def _described(file: Path, found: TensorFile) -> ModelConfig | None:
    """Read the description that we write into a published-layout file."""
    if "mae" not in found.beside:
        return None
    return parse_description(found.beside["mae"], where=str(file)).model
