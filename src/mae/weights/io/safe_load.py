"""Load tensors from untrusted files without executing code.

A file holds tensors, or is an index of several that do; its type is detected from the content. A
pickle may refer to tensors and plain containers, and in a training checkpoint to
`argparse.Namespace` for its arguments. Paths and numpy scalars are replaced by empty values; any
other name is rejected. A pickle of numpy arrays alone is read by a reader of its own.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from mae.errors import WeightsError
from mae.runs.checkpoint import read_sharded_model
from mae.runs.sharded import METADATA
from mae.weights.given import Take
from mae.weights.io.file_checks import (
    Kind,
    check_archive,
    check_header,
    kind_of,
    names_in,
    printable,
    read_json,
)
from mae.weights.io.numpy_pickle import UnknownName, is_numpy_pickle, read_numpy_pickle

# Exceptions that the readers raise for truncated, modified or forged files.
_BROKEN = (
    pickle.UnpicklingError, SafetensorError, zipfile.BadZipFile, struct.error, EOFError,
    RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError,
    ArithmeticError, MemoryError,
)  # fmt: skip

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_LARGEST_INDEX = 2**24  # bytes; that of ViT-H has 60 kB

_NETWORKS: Mapping[Take, Sequence[str]] = {
    "model": ("model", "state_dict"),
    "model_ema": ("model_ema", "state_dict_ema", "ema_state_dict", "ema"),
    "student": ("student",),
    "teacher": ("teacher",),
}
"""Checkpoint keys of a network, by its name for --take."""

_NAMESPACE = "argparse.Namespace"
# Types of arguments and metrics, which tensors do not depend on.
_PASSED_OVER = re.compile(
    r"pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path|numpy\.dtype|numpy\.dtypes\.\w+"
    r"|numpy\._?core\.multiarray\.scalar"
)
# Names that PyTorch allows by default and that files use: parts of tensors, plain containers.
_PLAIN = re.compile(
    r"torch\._utils\._rebuild_\w+|torch\.(\w*Storage|storage\.\w+|Size|device|nn\.parameter\.\w+)"
    r"|torch\.(bool|u?int\d+|b?float\w+|complex\d+|per_(tensor|channel)_\w+)"
    r"|torch\._tensor\._rebuild_from_type_v2"
    r"|collections\.(OrderedDict|Counter)|(builtins|__builtin__)\.(bytearray|set|complex)"
    r"|_codecs\.encode"
)
# Dtypes whose elements PyTorch can access individually.
_NUMBERS = re.compile(r"torch\.(bool|u?int(8|16|32|64)|b?float(8_\w+|16|32|64)|complex\d+)")


class TensorFile(NamedTuple):
    """Contents of a weight file."""

    tensors: dict[str, Tensor]
    """By the file's names; may be views of the file."""
    beside: dict[Any, Any]
    """Other contents of a training checkpoint: args, epoch ..."""
    notes: tuple[str, ...] = ()
    """Which of several networks was loaded, and how to load another."""


class PassedOver:
    """Placeholder for a pickled value that is ignored; keeps no data."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def read_tensors(path: Path, *, take: Take | None = None) -> TensorFile:
    """Read the tensors of a safetensors or PyTorch file, or of all files of an index.

    Args:
        path: the file; the `.metadata` of a sharded checkpoint for its model.
        take: network to load from a file with several; None loads the one named model.

    Raises:
        WeightsError: for another file, or one that is damaged or would execute code; for an index
            that does not match its files; for several networks of which none is named model,
            unless `take` selects one.
    """
    if path.name == METADATA:
        _require_one_network(path, take)
        return TensorFile(read_sharded_model(path.parent), {})
    try:
        kind = kind_of(path)
        if kind == "index":
            _require_one_network(path, take)
            return _read_sharded(path)
        if kind == "safetensors":
            check_header(path)
            _require_one_network(path, take)
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                found = TensorFile(tensors, file.metadata() or {})
        else:
            found = _choose(path, _read_pickle(path, kind), take)
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from error
    except _BROKEN as error:
        why = str(error).rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
        raise WeightsError(
            f"{path}: is cut short or damaged ({printable(why) or type(error).__name__}); "
            "get it again"
        ) from error
    _require_values(path, found.tensors)
    return found


def _read_sharded(index: Path) -> TensorFile:
    """Read the tensors of all files of an index, in the same folder."""
    if index.stat().st_size > _LARGEST_INDEX:
        raise WeightsError(f"{index}: is not weights; expected an index of at most 16 MB")
    content = read_json(index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise WeightsError(f"{index}: is not weights; expected a weight_map of tensors to files")
    tensors = dict[str, Tensor]()
    for name in sorted(set(files.values())):
        file = index.with_name(Path(name).name)
        # An untrusted index must not refer to files outside its folder, nor to an index.
        if file.name != name or not file.is_file() or kind_of(file) == "index":
            raise WeightsError(f"{index}: names {name!r}, which is no file beside it; get it again")
        shard = read_tensors(file).tensors
        if odd := sorted(shard.keys() ^ {n for n, other in files.items() if other == name}):
            which = f"{len(odd)} tensors ({'; '.join(odd[:5])})"
            raise WeightsError(f"{file}: {which} are not in both the file and {index.name}")
        tensors |= shard
    return TensorFile(tensors, {})


def is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite real numbers."""
    if not tensor.is_floating_point():
        return False
    # Takes a tenth of the time of isfinite().all(): both bounds are NaN if any value is.
    return not tensor.numel() or all(bool(bound.isfinite()) for bound in tensor.float().aminmax())


def _read_pickle(path: Path, kind: Kind) -> Mapping[Any, Any]:
    if kind == "zip":
        check_archive(path)
    elif is_numpy_pickle(path, names_in(path, kind)):
        try:
            return read_numpy_pickle(path)
        except UnknownName as error:
            raise _refused(path, [str(error)]) from error
    try:
        content = _load(path, kind, allowed=[])
    except pickle.UnpicklingError as error:
        strange = {name for name in names_in(path, kind) if not _PLAIN.fullmatch(name)}
        if not strange:
            raise
        passed_over = {name for name in strange if _PASSED_OVER.fullmatch(name)}
        if others := sorted(strange - passed_over - {_NAMESPACE}):
            raise _refused(path, others) from error
        allowed: list[Any] = [(PassedOver, name) for name in sorted(passed_over)]
        content = _load(path, kind, allowed=allowed + [Namespace] * (_NAMESPACE in strange))
        args = content.get("args") if isinstance(content, Mapping) else None
        if _NAMESPACE in strange and type(args) is not Namespace:
            raise WeightsError(
                f"{path}: holds an {_NAMESPACE}, which is taken only as the args of a training "
                "checkpoint"
            ) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, expected named tensors")
    return content


def _refused(path: Path, names: Sequence[str]) -> WeightsError:
    return WeightsError(
        f"{path}: would run {', '.join(names[:5])} when opened, expected tensors and plain values "
        "only; do not open it elsewhere unless you trust its maker"
    )


def _choose(path: Path, content: Mapping[Any, Any], take: Take | None) -> TensorFile:
    """Select one of the networks of a checkpoint, or the whole content if it is not one."""
    there: dict[str, str] = {}
    for group, keys in _NETWORKS.items():
        for key in keys:
            if _is_network(content.get(key), plain=group == "model"):
                there.setdefault(group, key)
    if not there:
        _require_one_network(path, take)
        return TensorFile(dict(content), {})
    default = "model" if "model" in there else next(iter(there)) if len(there) == 1 else None
    chosen = take or default
    if chosen is None or chosen not in there:
        raise WeightsError(
            f"{path}: holds {' and '.join(there.values())}, expected one of them to be "
            f"{'chosen' if take is None else take}; give --take {' or --take '.join(there)}"
        )
    key = there[chosen]
    others = [f"{other} (--take {group})" for group, other in there.items() if group != chosen]
    note = f"{path}: took {key} of the file, left {', '.join(others)}"
    beside = {name: value for name, value in content.items() if name != key}
    return TensorFile(dict(content[key]), beside, (note,) if others else ())


def _is_network(value: object, *, plain: bool) -> bool:
    # Under a key of the model, any mapping is accepted here, and validated later.
    return isinstance(value, Mapping) and (
        plain or any(isinstance(part, Tensor) for part in value.values())
    )


def _require_one_network(path: Path, take: Take | None) -> None:
    if take is not None:
        raise WeightsError(f"{path}: holds one network, not several; leave --take {take} out")


def _load(path: Path, kind: Kind, *, allowed: Sequence[Any]) -> object:
    # PyTorch treats any path with this suffix as safetensors, but not an open file.
    named = path.suffix == ".safetensors"
    with _only(allowed), warnings.catch_warnings(), path.open("rb") as file:
        # The warnings address the author of the file, and the error message is sufficient.
        warnings.simplefilter("ignore")
        return torch.load(
            file if named else path,
            map_location="cpu",
            weights_only=True,
            mmap=kind == "zip" and not named,
        )


@contextmanager
def _only(allowed: Sequence[Any]) -> Iterator[None]:
    """Allow pickles only these classes, ignoring other safe globals of the process meanwhile."""
    others = get_safe_globals()
    clear_safe_globals()
    add_safe_globals([*allowed])
    try:
        yield
    finally:
        # Modules imported meanwhile may have added safe globals.
        others += [trusted for trusted in get_safe_globals() if trusted not in allowed]
        clear_safe_globals()
        add_safe_globals(others)


def _require_values(path: Path, tensors: Mapping[Any, object]) -> None:
    size = 0
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            shown = printable(repr(name) if isinstance(name, (str, int)) else type(name).__name__)
            raise WeightsError(f"{path}: {shown} is {type(tensor).__name__}, expected a tensor")
        if len(name) > 200 or not name.isprintable():
            raise WeightsError(f"{path}: a tensor is called {printable(name)}, expected a name")
        if tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise WeightsError(f"{path}: {name} is {tensor.layout} on {tensor.device}, not values")
        if not _NUMBERS.fullmatch(str(tensor.dtype)):
            raise WeightsError(f"{path}: {name} is of {tensor.dtype}, expected plain numbers")
        size += tensor.nbytes
    # With stride 0, one stored number can be declared as a tensor of any size.
    if size > path.stat().st_size:
        raise WeightsError(f"{path}: declares {size:,} bytes of tensors, more than the file has")
