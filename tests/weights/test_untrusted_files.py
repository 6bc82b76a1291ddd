"""Files that nobody vouches for: one line, nothing executed, whatever they hold."""

from __future__ import annotations

import argparse
import datetime
import fractions
import os
import pathlib
import random
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from mae.cli.main import main
from mae.errors import WeightsError
from mae.weights.io.safe_load import is_finite, read_tensors
from mae.weights.load import load, load_encoder
from mae.weights.tools.inspect import inspect
from tests.weights import hostile, published

REFUSED = {name: (make, "would run [a-z_.]+") for name, make in hostile.PICKLES.items()}
REFUSED |= hostile.FILES


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Give a folder, and see to it that whatever happens in it leaves nothing outside."""
    (tmp_path / "files").mkdir()
    trusted = {*get_safe_globals()}

    yield tmp_path / "files"

    assert not (tmp_path / "mark").exists()
    # What is imported meanwhile may add to it.
    assert trusted <= {*get_safe_globals()}
    assert argparse.Namespace not in {*get_safe_globals()} - trusted


def test_there_are_more_than_forty_of_them() -> None:
    assert len(REFUSED | hostile.LOOK_WHOLE) > 100


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_or_broken_file_is_refused_in_one_line(folder: Path, name: str) -> None:
    make, message = REFUSED[name]
    path = make(folder)
    before = sorted(folder.rglob("*"))

    for read in (load, load_encoder, inspect):
        with pytest.raises(WeightsError, match=message) as caught:
            read(path)  # type: ignore[operator]
        assert str(caught.value).isprintable()

    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", hostile.LOOK_WHOLE)
def test_what_only_looks_like_a_model_is_described_but_never_loaded(
    folder: Path, name: str
) -> None:
    make, message = hostile.LOOK_WHOLE[name]
    path = make(folder)

    assert inspect(path).format == "facebook"
    for read in (load, load_encoder):
        with pytest.raises(WeightsError, match=message) as caught:
            read(path)  # type: ignore[operator]
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", REFUSED)
def test_the_command_says_one_line_and_ends_with_two(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, _ = REFUSED[name]

    code = main(["weights", "inspect", str(make(folder))])

    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert said.err.startswith("mae: ") and said.err.count("\n") == 1


@pytest.mark.slow
def test_another_process_ends_so_too(folder: Path) -> None:
    path = hostile.PICKLES["archive-os.system"](folder)
    command = [sys.executable, "-c", "from mae.cli.main import main; raise SystemExit(main())"]

    done = subprocess.run(
        [*command, "weights", "inspect", path], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mae: ") and done.stderr.count("\n") == 1


def test_what_the_process_trusts_elsewhere_is_not_trusted_here(folder: Path) -> None:
    others = get_safe_globals()
    add_safe_globals([os.path.join, getattr])
    try:
        with pytest.raises(WeightsError, match="would run .*getattr"):
            load(hostile.PICKLES["archive-getattr"](folder))
        assert getattr in get_safe_globals()
    finally:
        clear_safe_globals()
        add_safe_globals(others)


def test_an_archive_is_known_by_its_content_whatever_its_name(tmp_path: Path) -> None:
    path = published.checkpoint(tmp_path / "model.safetensors", published.full())

    assert load(path).objective.mask_ratio == 0.6


def test_every_other_name_is_listed(tmp_path: Path) -> None:
    path = published.checkpoint(
        tmp_path / "odd.pth",
        published.full(),
        clock=datetime.date(2024, 1, 2),
        ranks=fractions.Fraction(1, 3),
    )

    with pytest.raises(WeightsError) as caught:
        load(path)

    assert "datetime.date" in str(caught.value)
    assert "fractions.Fraction" in str(caught.value)
    assert "argparse.Namespace" not in str(caught.value).partition("when opened")[0]


@pytest.mark.parametrize("zipped", [True, False])
def test_paths_and_numbers_of_numpy_are_passed_over(tmp_path: Path, *, zipped: bool) -> None:
    args = Namespace(out=Path("/x"), root=pathlib.PureWindowsPath("c:/y"), norm_pix_loss=False)
    args.lr, args.step = np.float64(1e-3), np.int64(7)
    content = {"model": published.full(), "args": args, "best": np.float32(0.5), "epoch": 3}
    torch.save(content, tmp_path / "run.pth", _use_new_zipfile_serialization=zipped)
    torch.save(published.encoder_only() | {"out": Path("/x")}, tmp_path / "among.pth")

    assert not load(tmp_path / "run.pth").objective.normalize_target
    with pytest.raises(WeightsError, match="'out' is PassedOver, expected a tensor"):
        load_encoder(tmp_path / "among.pth")


@pytest.mark.parametrize(
    "kind",
    ["zip", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("pickle", "safetensors"))],
)
def test_changed_bytes_never_end_in_anything_but_one_line(tmp_path: Path, kind: str) -> None:
    """Of numbers: no. A flipped bit of a weight is another weight, in files without digests."""
    path = hostile.whole(tmp_path / "changed", kind)
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
            assert str(error).isprintable()
            refused += 1

    assert refused > 30


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

    assert load(path).objective.mask_ratio == 0.75


def test_a_description_that_is_no_text_is_ignored_however_deep(tmp_path: Path) -> None:
    assert load(hostile.nested(tmp_path / "deep.pth")).config.depth == 2


def test_values_of_eight_bits_or_none_are_looked_at_too() -> None:
    assert is_finite(torch.ones(3).to(torch.float8_e4m3fn))
    assert not is_finite(torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn))
    assert not is_finite(torch.tensor([1.0, float("-inf"), 2.0]))
    assert not is_finite(torch.ones(2, dtype=torch.complex64))
    assert is_finite(torch.empty(0))
