"""Tensors out of files that nobody vouches for: nothing in them is executed.

A file is recognised by its content. A pickle may name tensors, plain containers and
`argparse.Namespace` (the published training checkpoints hold one); any other name is refused.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from mae.errors import WeightsError

# What the readers of untrusted files raise for those cut short, changed or made up.
_BROKEN = (
    pickle.UnpicklingError, SafetensorError, zipfile.BadZipFile, EOFError, RuntimeError,
    ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError,
    MemoryError,
)  # fmt: skip


class TensorFile(NamedTuple):
    """What a file holds."""

    tensors: dict[str, Tensor]
    """By the file's own names; may be views of the file."""
    beside: dict[Any, Any]
    """What a training checkpoint holds beside the model: args, epoch ..."""


def read_tensors(path: Path) -> TensorFile:
    """Read the tensors of a safetensors or PyTorch file.

    Raises:
        WeightsError: for a file that is neither, is damaged, or wants anything executed.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
        # Asked first, since the length that precedes the header may look like a pickle's mark.
        if head[8:] == b"{":
            found = TensorFile(load_file(path), {})
        elif head[:1] in (b"P", b"\x80"):
            found = _read_pickle(path)
        else:
            raise WeightsError(f"{path}: is not weights; expected safetensors or a PyTorch file")
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from error
    except _BROKEN as error:
        why = str(error).rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0][:120]
        raise WeightsError(
            f"{path}: is cut short or damaged ({why or type(error).__name__}); get it again"
        ) from error
    _require_values(path, found.tensors)
    return found


def is_finite(tensor: Tensor) -> bool:
    """Tell whether all values are finite real numbers."""
    if not tensor.is_floating_point():
        return False
    # A tenth of the time of isfinite().all(): both bounds are NaN where any value is.
    return not tensor.numel() or all(bool(bound.isfinite()) for bound in tensor.float().aminmax())


def _read_pickle(path: Path) -> TensorFile:
    zipped = zipfile.is_zipfile(path)
    content = None
    with safe_globals([Namespace]), warnings.catch_warnings():
        # Advice to whoever wrote the file, before the error that says it all.
        warnings.simplefilter("ignore")
        strange = get_unsafe_globals_in_checkpoint(path) if zipped else []
        try:
            if not strange:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except pickle.UnpicklingError as error:
            # Older files cannot be listed beforehand; the reader stops at the first such name.
            strange = re.findall(r"\bGLOBAL (\S+)", str(error))
            if not strange:
                raise
    if strange:
        raise WeightsError(
            f"{path}: would run {', '.join(sorted(strange)[:5])} when opened, expected tensors "
            "and argparse.Namespace only; do not open it elsewhere unless you trust its maker"
        )
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, expected named tensors")
    for name in ("model", "state_dict"):
        if isinstance(content.get(name), Mapping):
            return TensorFile(dict(content[name]), {k: content[k] for k in content if k != name})
    return TensorFile(dict(content), {})


def _require_values(path: Path, tensors: Mapping[Any, object]) -> None:
    size = 0
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise WeightsError(f"{path}: {name!r} is {type(tensor).__name__}, expected a tensor")
        if tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise WeightsError(f"{path}: {name} is {tensor.layout} on {tensor.device}, not values")
        size += tensor.nbytes
    # One stored number can be declared as a tensor of any size.
    if size > path.stat().st_size:
        raise WeightsError(f"{path}: declares {size:,} bytes of tensors, more than the file has")
