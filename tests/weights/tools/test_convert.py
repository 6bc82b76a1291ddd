"""Conversions prove that the model is the same, or leave nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mae.cli.main import main
from mae.errors import WeightsError
from mae.model.classifier import Classifier
from mae.model.create import create
from mae.weights import read as reading
from mae.weights.formats import facebook
from mae.weights.formats.name_table import renamed
from mae.weights.formats.native import save
from mae.weights.io.safe_load import TensorFile, read_tensors
from mae.weights.load import load, load_classifier, load_encoder
from mae.weights.tools import convert as conversion
from mae.weights.tools.convert import convert
from mae.weights.tools.diff import diff
from tests.weights import published
from tests.weights.formats.test_native import CONFIG, same


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(create(CONFIG, seed=1), tmp_path / "ours", facts={"recipe": "demo"})


def test_model_that_no_default_describes_survives_the_published_layout(
    tmp_path: Path, folder: Path
) -> None:
    convert(folder, tmp_path / "theirs.pth", to="facebook")
    convert(tmp_path / "theirs.pth", tmp_path / "again", to="mae")

    assert same(load(tmp_path / "again"), load(folder))
    assert load(tmp_path / "again").config == CONFIG
    for name in ("config.json", "README.md", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_published_file_opens_without_allowing_any_name(tmp_path: Path, folder: Path) -> None:
    convert(folder, tmp_path / "theirs.pth", to="facebook")

    content = torch.load(tmp_path / "theirs.pth", weights_only=True)

    assert torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "theirs.pth") == []
    assert json.loads(content["mae"])["facts"] == {"recipe": "demo"}
    assert content["model"]["decoder_pred.weight"].shape == (4 * 4 * 2, 16)


def test_encoder_only_file_stays_one(tmp_path: Path) -> None:
    path = published.checkpoint(tmp_path / "encoder.pth", published.encoder_only())

    converted = convert(path, tmp_path / "ours", to="mae")

    assert converted.tensors == 30
    assert "took the encoder" in converted.notes[1]
    assert same(load_encoder(tmp_path / "ours"), load_encoder(path))


def test_heads_can_be_told(tmp_path: Path) -> None:
    path = published.checkpoint(tmp_path / "odd.pth", published.full(width=24, decoder=16))
    with pytest.raises(WeightsError, match="give heads"):
        convert(path, tmp_path / "ours", to="mae")

    convert(path, tmp_path / "ours", to="mae", heads=4, decoder_heads=2)

    assert load(tmp_path / "ours").config.num_heads == 4


def test_existing_destination_is_left_alone(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "precious").write_text("mine")

    with pytest.raises(WeightsError, match="precious: exists already"):
        convert(folder, tmp_path / "precious", to="facebook")

    assert (tmp_path / "precious").read_text() == "mine"


def test_source_that_cannot_be_loaded_leaves_nothing(tmp_path: Path) -> None:
    state = published.full()
    del state["norm.bias"]
    path = published.checkpoint(tmp_path / "short.pth", state)

    with pytest.raises(WeightsError, match="norm.bias"):
        convert(path, tmp_path / "ours", to="mae")

    assert [p.name for p in tmp_path.iterdir()] == ["short.pth"]


@pytest.mark.parametrize("to", ["mae", "facebook"])
def test_folder_that_is_not_there_leaves_nothing(
    tmp_path: Path, folder: Path, to: conversion.Target
) -> None:
    with pytest.raises(WeightsError, match="new: no such folder"):
        convert(folder, tmp_path / "new" / "theirs", to=to)

    assert [p.name for p in tmp_path.iterdir()] == ["ours"]


def test_model_that_reads_back_differently_is_not_kept(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = facebook.TABLE
    swap = {"encoder.norm.weight": "norm.bias", "encoder.norm.bias": "norm.weight"}
    monkeypatch.setattr(facebook, "renamed", lambda _table, tensors: renamed(table | swap, tensors))

    with pytest.raises(WeightsError, match="it reads back as another model"):
        convert(folder, tmp_path / "theirs.pth", to="facebook")

    assert [p.name for p in tmp_path.iterdir()] == ["ours"]


def test_what_computes_something_else_is_not_kept(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "_same", lambda _a, _b: True)
    table = facebook.TABLE
    swap = {"encoder.norm.weight": "norm.bias", "encoder.norm.bias": "norm.weight"}
    monkeypatch.setattr(facebook, "renamed", lambda _table, tensors: renamed(table | swap, tensors))

    with pytest.raises(WeightsError, match=r"not written: read back, it differs by \d"):
        convert(folder, tmp_path / "theirs.pth", to="facebook")

    assert [p.name for p in tmp_path.iterdir()] == ["ours"]


def test_the_command_prints_what_was_compared(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["weights", "convert", str(folder), str(tmp_path / "out.pth"), "--to", "facebook"])

    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert code == 0
    assert (rows["path"], rows["tensors"]) == (str(tmp_path / "out.pth"), "50")
    # Tokens, predictions and the loss of two images of 15 patches: 2 * (16 * 24 + 15 * 32) + 1.
    assert (rows["difference"], rows["values"], rows["outputs"]) == ("0", "1,729", "63")


def test_a_classifier_keeps_its_head_names_and_pool(tmp_path: Path) -> None:
    made = Classifier(create(CONFIG, seed=2).encoder, num_classes=3)
    save(made, tmp_path / "ours", class_names=("a", "b", "é"))

    convert(tmp_path / "ours", tmp_path / "tuned.pth", to="facebook")
    convert(tmp_path / "tuned.pth", tmp_path / "again", to="mae")

    again = load_classifier(tmp_path / "again")
    assert again.class_names == ("a", "b", "é")
    assert again.model.pool == "mean"
    assert same(again.model, made)
    with pytest.raises(WeightsError, match="fine-tuned with fc_norm"):
        convert(tmp_path / "ours", tmp_path / "encoder", to="mae", encoder_only=True)


def test_each_file_is_read_once(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[Path]()

    def counted(path: Path, **how: Any) -> TensorFile:
        read.append(path)
        return read_tensors(path, **how)

    monkeypatch.setattr(reading, "read_tensors", counted)

    convert(folder, tmp_path / "theirs.pth", to="facebook")
    assert diff(folder, tmp_path / "theirs.pth").same

    ours, temporary = folder / "model.safetensors", read[1]
    assert temporary.name == "theirs.pth"
    assert read == [ours, temporary, ours, tmp_path / "theirs.pth"]
