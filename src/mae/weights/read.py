"""Read weights of any supported format into tensors with mae's names.

To add a format, add a file next to `formats/lightly.py` (name table and metadata reader) and its
entry in `LAYOUTS`; to write it as well, add an entry in `tools/convert.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mae.config.serialize import from_dict
from mae.errors import ConfigError, WeightsError
from mae.runs.checkpoint import latest_checkpoint
from mae.runs.directory import RunDir, read_record
from mae.weights.formats import facebook, huggingface, lightly, openmmlab
from mae.weights.formats import native as folder
from mae.weights.formats.name_table import Facts, Layout, find_spelling, fuse_qkv
from mae.weights.formats.name_table import Format as Format
from mae.weights.formats.native import (
    CONFIG,
    TENSORS,
    ClassifierDescription,
    Description,
    parse_description,
)
from mae.weights.given import Take
from mae.weights.io.hub import local
from mae.weights.io.safe_load import TensorFile, read_tensors, require_choice
from mae.weights.io.sharded import INDEXES, is_index, read_sharded

LAYOUTS: tuple[Layout, ...] = (
    folder.LAYOUT,
    facebook.LAYOUT,
    huggingface.LAYOUT,
    openmmlab.LAYOUT,
    lightly.LAYOUT,
)


class RawWeights(NamedTuple):
    """Weights read from a path, before a model is built."""

    path: Path
    """The file with the tensors."""
    format: Format
    tensors: dict[str, Tensor]
    """By mae's names; may be views of the file."""
    description: Description | None
    """Description of the model in mae's own format, in or next to the file."""
    facts: Facts
    """Metadata of other formats, used without a description."""
    spell: Callable[[str], str]
    """Translates one of mae's names to the file's."""
    notes: tuple[str, ...] = ()
    """What was loaded from the file and what was skipped."""
    whole_images: bool = False
    """Whether the file belongs to a run trained on whole images; determined only for weights
    without a `crop_pct`."""

    @property
    def has_decoder(self) -> bool:
        """Whether any tensor belongs to a decoder."""
        return any(name.startswith("decoder.") for name in self.tensors)


def read_weights(path: str | Path, *, take: Take | None = None) -> RawWeights:
    """Read weights from a folder, a run, a checkpoint, a file or `hf:owner/name`.

    Args:
        path: location of the weights.
        take: network to load from a file with several; None loads the one named model.

    Raises:
        WeightsError: for a path without weights, or weights that cannot be read or recognised.
    """
    file = find_file(local(path))
    tensors, beside, notes = read_file(file, take=take)
    raw = name_tensors(file, tensors, beside)
    return raw._replace(notes=notes + raw.notes)


def read_file(file: Path, *, take: Take | None = None) -> TensorFile:
    """Read the tensors of a file, or of all files of an index, with their original names.

    Raises:
        WeightsError: if they cannot be read, or if `take` is given for a single network.
    """
    if not is_index(file):
        return read_tensors(file, take=take)
    require_choice(file, take)
    return read_sharded(file)


def name_tensors(
    file: Path, tensors: Mapping[str, Tensor], beside: Mapping[Any, Any]
) -> RawWeights:
    """Detect the layout of the tensors of a file and rename them to mae's names.

    Args:
        file: the file they were read from; config files next to it are read.
        tensors: by the file's names; may be on the meta device.
        beside: other contents of the file.

    Raises:
        WeightsError: for unknown names, or config files that cannot be read.
    """
    spelling = find_spelling(tensors, LAYOUTS)
    if spelling is None:
        raise WeightsError(
            f"{file}: holds {len(tensors)} tensors of unknown names {sorted(tensors)[:5]}, "
            f"expected those of {', '.join(layout.name for layout in LAYOUTS)}"
        )
    names = spelling.to_ours(tensors)
    ours = {name: tensors[theirs] for theirs, name in names.items()}
    if len(ours) < len(names):
        twice = [n for n, ours_ in names.items() if list(names.values()).count(ours_) > 1]
        raise WeightsError(f"{file}: holds one tensor under several names: {'; '.join(twice[:4])}")
    ours = fuse_qkv(ours, spell=spelling.to_theirs, where=str(file))
    raw = RawWeights(file, spelling.layout.name, ours, None, Facts(), spelling.to_theirs,
                     _outside(file, tensors, prefix=spelling.prefix))  # fmt: skip
    if spelling.layout is folder.LAYOUT:
        said = _neighbour(file)
        whole = said is not None and said.model.crop_pct is None and _of_whole_images(file)
        return raw._replace(description=said, whole_images=whole)
    beside = {**beside, **_metadata(file)}
    text = beside.get("mae")
    # A non-string value was not written by mae, and may be nested too deeply to print.
    if isinstance(text, str):
        return raw._replace(description=parse_description(text, where=str(file)))
    return raw._replace(facts=spelling.layout.facts(beside, file, ours))


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
    for held in (path, run.weights, latest_checkpoint(run.checkpoints)):
        for name in (TENSORS, INDEXES[0], "pytorch_model.bin", INDEXES[1]):
            if held is not None and (held / name).is_file():
                return held / name
    names = ", ".join(sorted(p.name for p in path.iterdir())[:5])
    raise WeightsError(
        f"{path}: holds {names or 'nothing'}; expected {TENSORS}, or a run with a checkpoint"
    )


def _metadata(file: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file; empty for other files."""
    try:
        with safe_open(file, "pt") as opened:
            return dict(opened.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def _of_whole_images(file: Path) -> bool:
    """Return whether a file belongs to a run that was trained on whole images."""
    folder = file.absolute().parent
    runs = RunDir(folder.parent), RunDir(folder.parent.parent)
    if folder not in (runs[0].weights, runs[1].checkpoints / folder.name):
        return False
    with suppress(ConfigError):  # the weights are usable with a damaged record
        record = read_record(runs[folder != runs[0].weights].path) or {"config": {}}
        augment = record["config"].get("augment")
        return isinstance(augment, Mapping) and augment.get("crop_scale") == [1, 1]
    return False


def _neighbour(file: Path) -> Description | None:
    """Read the description next to a file of mae, or that of its run."""
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
    known = {n: record["config"][n] for n in ("model", "objective") if n in record["config"]}
    said = from_dict(Description, known, where=str(RunDir(run).record))
    if "class_names" in record:
        names, pool = tuple(record["class_names"]), record["config"]["pool"]
        return ClassifierDescription(model=said.model, class_names=names, pool=pool)
    return said
