"""Inspecting tells what there is, also where loading would refuse."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from mae.fields import to_dict
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
    assert rows["has decoder"] == "True"
    assert (rows["width"], rows["depth"], rows["num heads"]) == ("192", "2", "3")
    assert rows["image size"] == "(12, 12)"
    assert rows["normalize target"] == "True"


def test_what_the_file_does_not_tell_is_not_claimed(tmp_path: Path) -> None:
    torch.save({"model": published.full(width=24, decoder=16)}, tmp_path / "odd.pth")

    found = inspect(tmp_path / "odd.pth").model

    assert (found["width"], found["decoder_width"]) == (24, 16)
    assert not {"num_heads", "decoder_heads", "normalize_target", "mask_ratio"} & found.keys()


def test_our_folder_is_described_by_its_configuration(tmp_path: Path) -> None:
    save(create(CONFIG), tmp_path)

    found = inspect(tmp_path)

    assert found.format == "mae"
    assert found.model == to_dict(CONFIG) | {"image_size": (12, 20)}


def test_an_encoder_alone_has_no_fields_of_a_decoder(tmp_path: Path) -> None:
    published.checkpoint(tmp_path / "theirs.pth", published.encoder_only())
    save(create(CONFIG).encoder, tmp_path / "ours")

    for name in ("theirs.pth", "ours"):
        found = inspect(tmp_path / name)
        assert not found.has_decoder
        assert not [field for field in found.model if "decoder" in field]


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
