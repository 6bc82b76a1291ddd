"""Sharded checkpoints whose maker had the manifest as well: digests are right, contents hostile."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from mae.parallel.dcp_metadata import read_metadata
from tests.weights.hostile import payloads

Spoil = Callable[[Path, Path], None]
"""Of a checkpoint and the file that a payload would make."""
SHARD = "__0_0.distcp"


def sign(path: Path) -> None:
    """Write the manifest anew, so that it holds for the files as they are."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    for name in manifest:
        content = (path / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        manifest[name] = {"size": len(content), "sha256": digest}
    (path / "manifest.json").write_text(json.dumps(manifest))


def metadata_of(path: Path) -> Metadata:
    return read_metadata(path / ".metadata", files={SHARD, "__1_0.distcp"})


def write(path: Path, content: object, *, protocol: int = 4) -> None:
    (path / ".metadata").write_bytes(pickle.dumps(content, protocol=protocol))


def _whole(name: str) -> Spoil:
    return lambda path, mark: write(path, payloads(mark)[name])


def _inside(name: str) -> Spoil:
    def spoil(path: Path, mark: Path) -> None:
        metadata = metadata_of(path)
        metadata.planner_data = {"model.table": payloads(mark)[name]}
        write(path, metadata, protocol=2)

    return spoil


def _in_a_shard(name: str) -> Spoil:
    def spoil(path: Path, mark: Path) -> None:
        hostile = io.BytesIO()
        torch.save([payloads(mark)[name]], hostile)
        (path / SHARD).write_bytes(hostile.getvalue().ljust((path / SHARD).stat().st_size, b"\0"))
        metadata = metadata_of(path)
        for place in metadata.storage_data.values():
            if place.relative_path == SHARD:
                place.offset, place.length = 0, len(hostile.getvalue())
        write(path, metadata)

    return spoil


def _changed(change: Callable[[Metadata], object]) -> Spoil:
    def spoil(path: Path, mark: Path) -> None:
        del mark
        metadata = metadata_of(path)
        change(metadata)
        write(path, metadata)

    return spoil


def _first(metadata: Metadata) -> Any:
    return next(iter(metadata.storage_data.values()))


def _raw(content: bytes) -> Spoil:
    return lambda path, mark: (path / ".metadata").write_bytes(content) and None


def _state(content: bytes) -> Spoil:
    return lambda path, mark: (path / "state.json").write_bytes(content) and None


def _manifest_of_elsewhere(path: Path, mark: Path) -> None:
    del mark
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["../../secret"] = manifest["state.json"]
    (path / "manifest.json").write_text(json.dumps(manifest))


_NAMES = payloads(Path("mark"))
_CLASS = b"\x80\x02ctorch.distributed.checkpoint.metadata\n"
IN_METADATA: dict[str, Spoil] = {
    **{f"metadata-{name}": _whole(name) for name in _NAMES},
    **{f"inside-{name}": _inside(name) for name in _NAMES},
    "a-class-changed": _raw(_CLASS + b"Metadata\nN}X\x05\x00\x00\x00brokeK\x01s\x86b."),
    "a-class-alone": _raw(_CLASS + b"MetadataIndex\n."),
    "a-persistent-id": _raw(b"\x80\x04\x8c\x01xQ."),
    "an-extension": _raw(b"\x80\x02\x82\x01."),
    "nothing": _raw(b""),
    "text": _raw(b"not a pickle"),
    "a-file-elsewhere": _changed(lambda m: setattr(_first(m), "relative_path", "../../secret")),
    "a-transform": _changed(lambda m: setattr(_first(m), "transform_descriptors", ["zstd"])),
    "bytes-not-a-tensor": _changed(
        lambda m: m.state_dict_metadata.update({"model.table": BytesStorageMetadata()})
    ),
    "a-huge-tensor": _changed(
        lambda m: setattr(m.state_dict_metadata["model.table"], "size", torch.Size([2**40, 5]))
    ),
    "a-negative-offset": _changed(lambda m: setattr(_first(m), "offset", -1)),
    "a-part-left-out": _changed(lambda m: m.state_dict_metadata["model.table"].chunks.pop()),
    "a-part-of-no-file": _changed(lambda m: m.storage_data.popitem()),
}
"""Refused before anything else is read."""
IN_SHARDS: dict[str, Spoil] = {f"shard-{name}": _in_a_shard(name) for name in _NAMES}
"""Refused while tensors are read."""
IN_STATE: dict[str, Spoil] = {
    "nested": _state(b"[" * 100_000),
    "no-step": _state(b"{}"),
    "a-step-of-text": _state(b'{"step": "4", "bad_in_a_row": 0, "extra": {}}'),
    "no-extra": _state(b'{"step": 4, "bad_in_a_row": 0, "extra": null}'),
}
MANIFESTS: dict[str, Spoil] = {"a-path-elsewhere": _manifest_of_elsewhere}
