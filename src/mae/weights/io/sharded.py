"""Read sharded weights: an index file and the files it lists."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from mae.errors import WeightsError
from mae.weights.io.safe_load import TensorFile, read_tensors

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


_LARGEST = 2**24  # maximum bytes of an index; that of ViT-H has 60 kB


def is_index(file: Path) -> bool:
    """Return whether the first bytes of a file are JSON, so that it may be an index."""
    if not file.is_file():
        return False
    try:
        with file.open("rb") as opened:
            head = opened.read(8)
    except OSError as error:
        raise WeightsError(f"{file}: cannot be read: {error.strerror or error}") from error
    # The length at the start of a safetensors file may begin with the byte of a brace, but also
    # has zero bytes.
    return head[:1] == b"{" and 0 not in head


def read_sharded(index: Path) -> TensorFile:
    """Read the tensors of all files of an index, in the same folder.

    Raises:
        WeightsError: for an invalid index, a missing or damaged file, or a tensor that is not in
            both its file and the index.
    """
    if index.stat().st_size > _LARGEST:
        raise WeightsError(f"{index}: is not weights; expected an index of at most 16 MB")
    try:
        content = json.loads(index.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{index}: cannot be read: {error}; get it again") from error
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise WeightsError(f"{index}: is not weights; expected a weight_map of tensors to files")
    tensors = dict[str, Tensor]()
    for shard in sorted(set(places.values())):
        # An untrusted index must not refer to files outside its folder.
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
