"""Weights in several files, and the index that says which tensor is in which."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from mae.errors import WeightsError
from mae.weights.files import TensorFile, read_tensors

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def is_index(file: Path) -> bool:
    """Tell from its first byte whether a file is JSON, thus perhaps an index, and no tensors."""
    try:
        with file.open("rb") as opened:
            return opened.read(1) == b"{"
    except OSError as error:
        raise WeightsError(f"{file}: cannot be read: {error.strerror or error}") from error


def read_sharded(index: Path) -> TensorFile:
    """Read the tensors of all files of an index, which lie beside it.

    Raises:
        WeightsError: for what is no index, a file that is missing or broken, or a tensor that is
            missing from its file or not in the index.
    """
    try:
        content = json.loads(index.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{index}: cannot be read: {error}; get it again") from error
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise WeightsError(f"{index}: is not weights; expected a weight_map of tensors to files")
    tensors = dict[str, Tensor]()
    for shard in sorted(set(places.values())):
        # An index from elsewhere must not lead to files elsewhere.
        if Path(shard).name != shard or not (file := index.with_name(shard)).is_file():
            raise WeightsError(
                f"{index}: names {shard!r}, which is no file beside it; get it again"
            )
        held, wanted = read_tensors(file).tensors, {n for n, p in places.items() if p == shard}
        if odd := sorted(held.keys() ^ wanted):
            which = f"{len(odd)} tensors ({'; '.join(odd[:5])})"
            raise WeightsError(f"{file}: {which} are not in both the file and {index.name}")
        tensors |= held
    return TensorFile(tensors, {})
