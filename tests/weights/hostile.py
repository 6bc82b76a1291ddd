"""Files that nobody should open: each made from a published one, or by hand."""

from __future__ import annotations

import argparse
import builtins
import functools
import io
import json
import os
import pickle
import struct
import subprocess
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mae.weights.formats import facebook
from tests.weights import published

Maker = Callable[[Path], Path]


class Runs:
    """Pickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call

    def __call__(self) -> None:
        """Let the result of one call be called by another."""


class Disguised(argparse.Namespace):
    """A Namespace by inheritance only."""


def payloads(mark: Path) -> dict[str, Any]:
    """Give objects that would make the file `mark` if a pickle of them were obeyed."""
    touch = f"open({str(mark)!r}, 'w').close()"
    return {
        "os.system": Runs(os.system, f"touch {mark}"),
        "subprocess": Runs(subprocess.check_call, ["touch", str(mark)]),
        "eval": Runs(eval, touch),
        "exec": Runs(exec, touch),
        "open": Runs(builtins.open, str(mark), "w"),
        "getattr": Runs(Runs(getattr, Runs(__import__, "os"), "system"), f"touch {mark}"),
        "partial": functools.partial(os.system, f"touch {mark}"),
        "numpy": np.arange(3),
        "namespace-subclass": Disguised(norm_pix_loss=True),
        "inside-a-namespace": argparse.Namespace(deep=[Runs(os.system, f"touch {mark}")]),
        "module": nn.Linear(2, 3),
    }


class Stored(NamedTuple):
    """A storage as an archive names it: of a record, so many numbers."""

    key: str
    count: int


class _Pickler(pickle.Pickler):
    def persistent_id(self, thing: Any) -> Any:
        if isinstance(thing, Stored):
            return ("storage", torch.FloatStorage, thing.key, "cpu", thing.count)
        return None


def tensor(storage: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Runs:
    """Give a tensor as PyTorch pickles it."""
    rebuild = torch._utils._rebuild_tensor_v2  # type: ignore[attr-defined]
    requires_grad = False
    return Runs(rebuild, storage, offset, shape, strides, requires_grad, OrderedDict())


def archive(path: Path, content: Any, records: Mapping[str, bytes], *, packed: int = 0) -> Path:
    """Write what `torch.save` would, from a pickle and records of any make."""
    data = io.BytesIO()
    _Pickler(data, protocol=2).dump(content)
    entries = {"data.pkl": data.getvalue(), "byteorder": b"little", **records, "version": b"3\n"}
    with zipfile.ZipFile(path, "w", packed) as file:
        for name, body in entries.items():
            file.writestr(f"archive/{name}", body)
    return path


def safetensors(
    path: Path, header: object, body: bytes = b"", *, length: int | None = None
) -> Path:
    """Write a safetensors file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def whole(path: Path, kind: str) -> Path:
    """Write a good file: a published one as an archive, as plain pickles, or as safetensors."""
    if kind == "safetensors":
        save_file(published.full(), path)
    else:
        state = {"model": published.full(), "args": argparse.Namespace(norm_pix_loss=True)}
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    return path


def _pickled(name: str, *, zipped: bool, where: str = "args") -> Maker:
    def make(folder: Path) -> Path:
        payload = payloads(folder.parent / "mark")[name]
        state: dict[Any, Any] = {"model": published.full()}
        if where == "tensor":
            state["model"]["cls_token"] = payload
        else:
            state[where] = payload
        path = folder / "hostile.pth"
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        return path

    return make


def _storage(folder: Path) -> Path:
    run = payloads(folder.parent / "mark")["os.system"]
    content = {"model": {"cls_token": tensor(run, 0, (2,), (1,))}}
    return archive(folder / "hostile.pth", content, {"data/0": bytes(8)})


def _raw(protocol: int) -> Maker:
    def make(folder: Path) -> Path:
        path = folder / "raw.pth"
        run = payloads(folder.parent / "mark")["os.system"]
        path.write_bytes(pickle.dumps({"model": run}, protocol=protocol))
        return path

    return make


def _tar(folder: Path) -> Path:
    run = pickle.dumps(payloads(folder.parent / "mark")["os.system"], protocol=2)
    with tarfile.open(folder / "old.pth", "w") as file:
        for name in ("storages", "tensors", "pickle", "../../mark"):
            entry = tarfile.TarInfo(name)
            entry.size = len(run)
            file.addfile(entry, io.BytesIO(run))
    return folder / "old.pth"


def _namespace_elsewhere(folder: Path) -> Path:
    state = {"model": published.full(), "optimizer": argparse.Namespace(lr=1)}
    torch.save(state, folder / "odd.pth")
    return folder / "odd.pth"


def _cut(kind: str, share: float) -> Maker:
    def make(folder: Path) -> Path:
        path = whole(folder / "cut", kind)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        return path

    return make


def _flipped(kind: str, mark: bytes, *, after: int = 0, last: bool = False) -> Maker:
    """Flip a bit so many bytes behind the first or last place of a mark."""

    def make(folder: Path) -> Path:
        path = whole(folder / "flipped", kind)
        content = bytearray(path.read_bytes())
        content[(content.rindex(mark) if last else content.index(mark)) + after] ^= 0x10
        path.write_bytes(content)
        return path

    return make


def _built(content: Any, records: Mapping[str, bytes], *, packed: int = 0) -> Maker:
    return lambda folder: archive(folder / "built.pth", content, records, packed=packed)


def _one(storage: Stored, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Maker:
    return _built({"model": {"cls_token": tensor(storage, offset, shape, strides)}},
                  {"data/0": bytes(4 * 6), "data/1": bytes(4000)})  # fmt: skip


def _claims(folder: Path) -> Path:
    """An archive whose directory says that a stored entry unpacks to 4 GB."""
    path = archive(folder / "claims.pth", {"model": {}}, {"data/0": bytes(64)})
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    content[entry + 24 : entry + 28] = b"\xf0\xff\xff\xff"
    path.write_bytes(content)
    return path


def _overlapping(folder: Path) -> Path:
    """An archive of a thousand entries that are all the same bytes."""
    path = archive(folder / "overlapping.pth", {"model": {}}, {"data/0": bytes(4000)})
    content = path.read_bytes()
    start, end = content.index(b"PK\x01\x02"), content.rindex(b"PK\x05\x06")
    entries = content[start:end].split(b"PK\x01\x02")[1:]
    entry = next(b"PK\x01\x02" + e for e in entries if b"data/0" in e)
    directory = content[start:end] + 1000 * entry
    count = len(entries) + 1000
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(directory), start, 0)
    path.write_bytes(content[:start] + directory + tail)
    return path


def nested(path: Path) -> Path:
    """Write a good file with our description replaced by a list in a list in a list ..."""
    state = {"model": published.full()}
    torch.save(state, path)
    with zipfile.ZipFile(path) as file:
        entries = {entry: file.read(entry) for entry in file.namelist()}
    depth = 10**5
    # Put into the outermost dict, before the pickle stops.
    deep = b"X\x03\0\0\0mae" + depth * b"]" + (depth - 1) * b"a" + b"s."
    with zipfile.ZipFile(path, "w") as file:
        for name, body in entries.items():
            file.writestr(name, body[:-1] + deep if name.endswith("data.pkl") else body)
    return path


def _changed(change: Callable[[dict[str, Tensor]], object]) -> Maker:
    def make(folder: Path) -> Path:
        state = published.full()
        change(state)
        return published.checkpoint(folder / "changed.pth", state)

    return make


def _bytes(content: bytes, name: str = "model.pth") -> Maker:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _header(header: object, body: bytes = b"", *, length: int | None = None) -> Maker:
    return lambda folder: safetensors(folder / "made.safetensors", header, body, length=length)


def _described(config: bytes) -> Maker:
    """A folder like ours whose description is not."""

    def make(folder: Path) -> Path:
        ours = {facebook.to_ours(name): t for name, t in published.full().items()}
        save_file(ours, folder / "model.safetensors")
        (folder / "config.json").write_bytes(config)
        return folder

    return make


def _claimed(**fields: object) -> Maker:
    """A folder like ours that describes another model than it holds."""
    model = {
        "image_size": [12, 12], "patch_size": 4, "width": 192, "depth": 2, "num_heads": 3,
        "decoder_width": 192, "decoder_depth": 1, "decoder_heads": 6,
    } | fields  # fmt: skip
    said = {"format": "mae", "format_version": 1, "library": "mae-vision 0", "model": model}
    return _described(json.dumps(said).encode())


def _index(target: str) -> Maker:
    """A sharded folder whose index points out of it, at good weights."""

    def make(folder: Path) -> Path:
        outside = whole(folder.parent / "outside.safetensors", "safetensors")
        where = target.format(outside=outside.absolute())
        index = {"metadata": {}, "weight_map": dict.fromkeys(published.full(), where)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder

    return make


def _folder(folder: Path) -> Path:
    (folder / "x.pth").mkdir()
    return folder / "x.pth"


def _link(folder: Path) -> Path:
    (folder / "empty").mkdir()
    (folder / "link.pth").symlink_to(folder / "empty")
    return folder / "link.pth"


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.pth")
    return folder / "pipe.pth"


def _drop(state: dict[str, Tensor], start: str) -> None:
    for name in [name for name in state if name.startswith(start)]:
        del state[name]


_F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
_PAGE = b"\n<!DOCTYPE html><html><head><title>403 Forbidden</title></head></html>"
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 343249461\n"
_SIX = Stored("0", 6)

PICKLES: dict[str, Maker] = {
    **{f"archive-{name}": _pickled(name, zipped=True) for name in payloads(Path("mark"))},
    **{f"pickle-{name}": _pickled(name, zipped=False) for name in payloads(Path("mark"))},
    "archive-call-as-tensor": _pickled("os.system", zipped=True, where="tensor"),
    "pickle-call-as-tensor": _pickled("os.system", zipped=False, where="tensor"),
    "archive-call-as-storage": _storage,
    **{f"protocol-{protocol}": _raw(protocol) for protocol in range(2, 6)},
}
"""Pickles that would run something; each is refused by the name of what it would run."""

FILES: dict[str, tuple[Maker, str]] = {
    "namespace-elsewhere": (_namespace_elsewhere, "argparse.Namespace, which is taken only as"),
    "protocol-0": (_raw(0), "is not weights"),
    "protocol-1": (_raw(1), "is not weights"),
    "tar-with-pickles": (_tar, "it is a tar archive"),
    **{
        f"{kind}-cut-at-{share}": (_cut(kind, share), "cut short or damaged|is empty|not weights")
        for kind in ("zip", "pickle", "safetensors")
        for share in (0, 0.001, 0.1, 0.5, 0.999)
    },
    "flip-archive-mark": (_flipped("zip", b"PK\x03\x04"), "is not weights"),
    "flip-archive-pickle": (_flipped("zip", b"cls_token"), "damaged"),
    "flip-archive-directory": (_flipped("zip", b"PK\x01\x02", after=2), "damaged"),
    "flip-archive-end": (_flipped("zip", b"PK\x05\x06", after=1, last=True), "damaged"),
    "flip-pickle-mark": (_flipped("pickle", b"\x80\x02\x8a", after=5), "damaged"),
    "flip-pickle-opcode": (_flipped("pickle", b"ctorch._utils"), "damaged"),
    "flip-header-length": (_flipped("safetensors", b"{", after=-5), "a header of"),
    "flip-header-json": (_flipped("safetensors", b'"dtype"', after=0), "damaged"),
    "flip-header-offset": (_flipped("safetensors", b"data_offsets", after=15), "damaged"),
    "bomb-compressed": (
        _built({"model": {}, "x": "0" * 10**7}, {}, packed=zipfile.ZIP_DEFLATED), "compressed"
    ),
    "bomb-claimed-size": (_claims, "claims to unpack to 4,29"),
    "bomb-overlapping": (_overlapping, "claims to unpack to 4,0"),
    "bomb-one-number": (
        _changed(lambda s: s.update(cls_token=torch.zeros(1).expand(10**12))), "declares 4,0"
    ),
    "bomb-huge-storage": (_one(Stored("1", 10**13), 0, (10**13,), (1,)), "damaged"),
    "bomb-huge-shape": (_one(_SIX, 0, (2**40, 2**40), (0, 0)), "damaged|declares"),
    "storage-beyond-file": (_one(Stored("1", 9000), 0, (9000,), (1,)), "damaged"),
    "strides-beyond-storage": (_one(_SIX, 0, (2, 3), (100, 1)), "damaged"),
    "offset-beyond-storage": (_one(_SIX, 5, (2,), (1,)), "damaged"),
    "negative-offset": (_one(_SIX, -1, (2,), (1,)), "damaged"),
    "negative-stride": (_one(_SIX, 5, (3,), (-1,)), "damaged"),
    "negative-shape": (_one(_SIX, 0, (-2,), (1,)), "damaged"),
    "negative-storage": (_one(Stored("0", -6), 0, (2,), (1,)), "damaged"),
    "missing-record": (_one(Stored("7", 6), 0, (2,), (1,)), "damaged"),
    "path-as-record": (_one(Stored("../../../etc/passwd", 6), 0, (2,), (1,)), "damaged"),
    "zip-of-something-else": (
        lambda folder: Path(np.savez(folder / "a.npz", np.zeros(3)) or folder / "a.npz"),
        "without data.pkl",
    ),
    "torchscript": (_built({"model": {}}, {"constants.pkl": b""}), "TorchScript"),
    "bytes-behind-archive": (
        lambda folder: _bytes(whole(folder / "a", "zip").read_bytes() + b"\0")(folder),
        "bytes behind",
    ),
    "safetensors-claims-gigabytes": (_header({"a": _F32}, bytes(8), length=2**40), "a header of"),
    "safetensors-deep-header": (_header(b'{"a":' + b"[" * 10**5), "damaged"),
    "safetensors-header-no-json": (_header(b"{not json}", bytes(8)), "damaged"),
    "safetensors-named-twice": (
        _header(b'{"a":%s,"a":%s}' % (2 * (json.dumps(_F32).encode(),)), bytes(8)), "twice"
    ),
    "safetensors-overlap": (
        _header({"a": _F32, "b": _F32 | {"data_offsets": [4, 12]}}, bytes(12)), "damaged"
    ),
    "safetensors-beyond-file": (_header({"a": _F32 | {"data_offsets": [0, 800]}}, bytes(8)),
                                "damaged"),
    "safetensors-backwards": (_header({"a": _F32 | {"data_offsets": [8, 0]}}, bytes(8)), "damaged"),
    "safetensors-huge-shape": (_header({"a": _F32 | {"shape": [2**40, 2**40]}}, bytes(8)),
                               "damaged"),
    "safetensors-negative-shape": (_header({"a": _F32 | {"shape": [-2]}}, bytes(8)), "damaged"),
    "safetensors-unknown-dtype": (_header({"a": _F32 | {"dtype": "F31"}}, bytes(8)), "damaged"),
    "safetensors-bytes-left": (_header({"a": _F32}, bytes(80)), "damaged"),
    "safetensors-odd-name": (_header({"a\n\x1b[2J": _F32}, bytes(8)), "expected a name"),
    "no-weights-at-all": (_built({"model": {}}, {}), "holds 0 tensors"),
    # PyTorch has no operations on these; older ones do not know them.
    "numbers-of-four-bits": (
        _header({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}, bytes(2)),
        "expected plain numbers|damaged",
    ),
    # Without its last block, a file that does not describe itself is a whole, shallower one.
    "missing-block": (_changed(lambda s: _drop(s, "blocks.0.")), "is missing"),
    "missing-table": (_changed(lambda s: _drop(s, "pos_embed")), "is missing"),
    "wrong-table": (_changed(lambda s: s.update(pos_embed=torch.ones(1, 11, 192))), "no square"),
    "flat-projection": (
        _changed(lambda s: s.update({"patch_embed.proj.weight": torch.ones(192, 48)})),
        "expected 4 dimensions",
    ),
    "config-no-json": (_described(b"{"), "config.json: does not describe weights"),
    "config-deep": (_described(b"[" * 10**5), "config.json: does not describe weights"),
    "config-of-a-pickle": (
        _described(pickle.dumps(Runs(os.system, "true"))), "config.json: does not describe weights"
    ),
    "config-of-a-million-blocks": (_claimed(depth=10**9), "depth"),
    "config-of-a-huge-image": (_claimed(image_size=[4 * 10**9, 4 * 10**9]), "image_size"),
    "config-of-a-huge-mlp": (_claimed(mlp_ratio=1e300), "mlp_ratio"),
    "config-of-a-negative-mlp": (_claimed(mlp_ratio=-4.0), "mlp_ratio"),
    "config-of-a-huge-width": (_claimed(width=3 * 2**40), "width"),
    "index-out-of-folder": (_index("../outside.safetensors"), "index|expected model.safetensors"),
    "index-of-absolute-path": (_index("{outside}"), "index|expected model.safetensors"),
    "web-page": (_bytes(_PAGE), "looks like a web page"),
    "lfs-pointer": (_bytes(_POINTER), "is a Git LFS pointer"),
    "text": (_bytes(b"Weights: see the other page.\n"), "looks like text"),
    "json": (_bytes(b'{"error": "not found"}'), "is not weights"),
    "gzip": (_bytes(b"\x1f\x8b\x08\0\0\0\0"), "is compressed"),
    "image": (_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)), "not weights"),
    "folder-named-as-file": (_folder, "holds nothing"),
    "link-to-a-folder": (_link, "holds nothing"),
    "pipe": (_pipe, "a pipe or device"),
    "device": (lambda folder: Path("/dev/zero"), "a pipe or device"),
}  # fmt: skip
"""Broken and made-up files, with what the refusal has to say."""

LOOK_WHOLE: dict[str, tuple[Maker, str]] = {
    "missing-tensor": (_changed(lambda s: _drop(s, "blocks.1.mlp.fc2.bias")), "missing"),
    "wrong-shape": (
        _changed(lambda s: s.update({"norm.weight": torch.ones(3, 7)})), "of another shape"
    ),
    "nan": (_changed(lambda s: s["norm.bias"].fill_(float("nan"))), "not finite numbers"),
    "infinite": (_changed(lambda s: s["cls_token"].fill_(float("inf"))), "not finite numbers"),
    "integers": (_changed(lambda s: s.update(cls_token=torch.ones(1, 1, 192).long())),
                 "not finite numbers"),
    "left-over": (_changed(lambda s: s.update({"blocks.0.gamma": torch.ones(192)})), "unexpected"),
}  # fmt: skip
"""Files of good tensors that are no model: `inspect` describes them, loading refuses them."""
