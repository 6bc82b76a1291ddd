"""Inspecting tells what there is, also where loading would refuse."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from mae.model.create import create
from mae.weights.folder import save
from mae.weights.inspect import inspect
from tests.weights import published
from tests.weights.test_folder import CONFIG


def test_published_file_is_described(tmp_path: Path) -> None:
    state = published.full()
    path = published.checkpoint(tmp_path / "full.pth", state)

    found = inspect(path)
    rows = dict(found.rows())

    assert found.format == "facebook"
    assert found.tensors == 50
    assert found.parameters == sum(tensor.numel() for tensor in state.values())
    assert found.not_finite == 0
    assert rows["encoder"] == "ViT of width 192, 2 blocks, patch 4, 3 heads"
    assert rows["pictures"] == "12 x 12, 3 channels, patch 4"
    assert rows["decoder"] == "192 x 1, 6 heads, predicts pixels normalised by their patch"


def test_what_the_file_does_not_tell_is_not_claimed(tmp_path: Path) -> None:
    shapes = published.encoder_shapes(24, 2, patch=4, patches=15)
    shapes |= published.decoder_shapes(16, 1, encoder=24, patch=4, patches=15)
    torch.save({"model": published.filled(shapes)}, tmp_path / "odd.pth")

    rows = dict(inspect(tmp_path / "odd.pth").rows())

    assert rows["encoder"].endswith("? heads")
    assert rows["pictures"].startswith("? x ?")
    assert "? heads" in rows["decoder"]
    assert "assumed, the file does not say" in rows["decoder"]


def test_our_folder_is_described_by_its_configuration(tmp_path: Path) -> None:
    save(create(CONFIG), tmp_path)

    rows = dict(inspect(tmp_path).rows())

    assert rows["format"] == "this library"
    assert rows["pictures"] == "12 x 20, 2 channels, patch 4"
    assert rows["decoder"] == "16 x 1, 4 heads, predicts pixels"


def test_encoder_only_and_fine_tuned_files_say_so(tmp_path: Path) -> None:
    state = published.encoder_only() | {"head.weight": torch.zeros(7, 192)}
    del state["norm.weight"]
    path = published.checkpoint(tmp_path / "tuned.pth", state)

    found = inspect(path)

    assert dict(found.rows())["decoder"].startswith("none: features are possible")
    assert "fine-tuned" in found.notes[0]
    assert "last norm" in found.notes[1]


def test_numbers_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    state = published.full()
    state["cls_token"][0, 0, :5] = float("nan")
    state["norm.bias"][7] = float("-inf")
    path = published.checkpoint(tmp_path / "nan.pth", state)

    assert inspect(path).not_finite == 6


def test_everything_found_is_plain_json(tmp_path: Path) -> None:
    save(create(CONFIG), tmp_path / "ours")
    published.checkpoint(tmp_path / "grey.pth", published.full(channels=1))

    for path in (tmp_path / "ours", tmp_path / "grey.pth"):
        found = json.loads(json.dumps(inspect(path)._asdict()))
        assert found["model"]["patch_size"] == 4
