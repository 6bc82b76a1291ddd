"""Files that nobody vouches for: one line, nothing executed, whatever they hold."""

from __future__ import annotations

import argparse
import builtins
import os
import pathlib
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mae.errors import WeightsError
from mae.weights.files import is_finite, read_tensors
from mae.weights.load import load, load_encoder
from tests.weights import published


class Runs:
    """Pickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class Disguised(argparse.Namespace):
    """A Namespace by inheritance only."""


def payloads(mark: Path) -> dict[str, Any]:
    touch = f"open({str(mark)!r}, 'w').close()"
    return {
        "system": Runs(os.system, f"touch {mark}"),
        "eval": Runs(eval, touch),
        "exec": Runs(exec, touch),
        "getattr": Runs(getattr, Runs(__import__, "os"), "system"),
        "open": Runs(builtins.open, str(mark), "w"),
        "subclass": Disguised(norm_pix_loss=True),
        "hidden": argparse.Namespace(norm_pix_loss=True, deep=[Runs(os.system, f"touch {mark}")]),
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("payload", payloads(Path("mark")))
def test_hostile_pickle_is_refused_by_name_and_does_nothing(
    tmp_path: Path, payload: str, *, zipped: bool
) -> None:
    mark = tmp_path / "mark"
    path = tmp_path / "hostile.pth"
    torch.save(
        {"model": published.encoder_only(), "args": payloads(mark)[payload]},
        path,
        _use_new_zipfile_serialization=zipped,
    )

    with pytest.raises(WeightsError, match="hostile.pth: would run [a-z_.]+") as caught:
        load_encoder(path)

    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_raw_pickle_is_refused_and_does_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / f"raw{protocol}.pth"
        path.write_bytes(pickle.dumps(Runs(os.system, f"touch {mark}"), protocol=protocol))

        with pytest.raises(WeightsError):
            load(path)

    assert not mark.exists()


def test_every_other_name_is_listed(tmp_path: Path) -> None:
    path = published.checkpoint(
        tmp_path / "odd.pth",
        published.full(),
        output_dir=pathlib.PurePosixPath("x"),
        lr=np.float64(1),
    )

    with pytest.raises(WeightsError) as caught:
        load(path)

    assert "pathlib.PurePosixPath" in str(caught.value)
    assert "scalar" in str(caught.value)
    assert "argparse.Namespace" not in str(caught.value).partition("when opened")[0]


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_truncated_file_is_refused_in_one_line(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / "whole"
    write(path, kind)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])

    with pytest.raises(WeightsError, match="whole: ") as caught:
        load_encoder(path)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_changed_bytes_never_end_in_anything_but_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "changed"
    write(path, kind)
    whole = path.read_bytes()
    random_ = random.Random(0)
    refused = 0

    for _ in range(100):
        changed = bytearray(whole)
        for _ in range(3):
            # Most of the structure is near the ends, most of the middle is numbers.
            place = random_.randrange(4000)
            changed[random_.choice([place, -1 - place])] = random_.randrange(256)
        path.write_bytes(changed)
        try:
            load_encoder(path)
        except WeightsError as error:
            assert "\n" not in str(error)
            refused += 1

    assert refused > 30


def write(path: Path, kind: str) -> None:
    if kind == "safetensors":
        save_file(published.encoder_only(), path)
    else:
        state = {"model": published.encoder_only(), "args": argparse.Namespace(a=1)}
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({"model": {"cls_token": 3}}, "'cls_token' is int, expected a tensor"),
        ({"model": {7: torch.zeros(1)}}, "7 is Tensor, expected a tensor"),
        ({"model": {"a": torch.eye(3).to_sparse()}}, "a is torch.sparse_coo"),
        ({"model": {"a": torch.empty(3, device="meta")}}, "a is torch.strided on meta"),
        ({"model": {"a": torch.zeros(1).expand(10**12)}}, "declares 4,000,000,000,000 bytes"),
    ],
)
def test_what_is_not_plain_tensors_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "odd.pth")

    with pytest.raises(WeightsError, match=message):
        read_tensors(tmp_path / "odd.pth")


@pytest.mark.parametrize("content", [b"", b"P", b"%PDF-1.7 and so on", b"\x80", b"12345678{"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)

    with pytest.raises(WeightsError, match="other: is "):
        load_encoder(tmp_path / "other")


def test_missing_path_is_shown_in_full() -> None:
    with pytest.raises(WeightsError, match="/nowhere/model.pth: no such file or folder"):
        load("nowhere/model.pth")


def test_numbers_that_cannot_be_weights_are_refused(tmp_path: Path) -> None:
    state = published.encoder_only()
    state["norm.bias"] = state["norm.bias"].long()
    state["norm.weight"] = state["norm.weight"].to(torch.complex64)
    path = published.checkpoint(tmp_path / "whole.pth", state)

    with pytest.raises(WeightsError, match=r"2 not finite numbers \(norm.weight; norm.bias\)"):
        load_encoder(path)


def test_a_namespace_of_nonsense_is_ignored(tmp_path: Path) -> None:
    path = published.checkpoint(
        tmp_path / "odd.pth", published.full(), norm_pix_loss="yes", mask_ratio=float("nan")
    )

    assert load(path).config.mask_ratio == 0.75


def test_values_of_eight_bits_or_none_are_looked_at_too() -> None:
    assert is_finite(torch.ones(3).to(torch.float8_e4m3fn))
    assert not is_finite(torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn))
    assert not is_finite(torch.tensor([1.0, float("-inf"), 2.0]))
    assert not is_finite(torch.ones(2, dtype=torch.complex64))
    assert is_finite(torch.empty(0))
