"""Inspecting tells what there is and how it is known, also where loading would refuse."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mae.config.objective import ObjectiveConfig
from mae.config.run import FinetuneConfig
from mae.config.serialize import to_dict
from mae.model.create import create
from mae.weights.formats.native import save
from mae.weights.start_from import initial_classifier
from mae.weights.tools import inspect as module
from mae.weights.tools.inspect import inspect
from tests.weights import published
from tests.weights.formats.test_native import CONFIG


def test_published_file_is_described(tmp_path: Path) -> None:
    state = published.full()
    path = published.checkpoint(tmp_path / "full.pth", state)

    found = inspect(path)
    rows = {name: (value, how) for name, value, how in found.rows()}

    assert found.format == "facebook"
    assert found.tensors == 50
    assert found.parameters == sum(tensor.numel() for tensor in state.values())
    assert found.not_finite == 0
    assert rows["has decoder"] == ("yes", "")
    assert rows["size"] == ("ViT of width 192, 2 blocks, patch 4", "")
    assert rows["width"] == ("192", "by its shapes")
    assert rows["image size"] == ("12 x 12", "by its shapes, assumed square (--grid)")
    assert rows["num heads"] == ("3", "assumed (--heads)")
    assert rows["norm eps"] == ("1e-06", "assumed (--norm-eps)")
    assert rows["activation"] == ("exact GELU", "assumed")
    assert rows["pixels"][1] == "assumed (--mean, --std)"
    assert rows["normalize target"] == ("yes", "by the run's arguments")
    assert rows["license"] == ("not stated", "")
    assert "num classes" not in rows


def test_what_the_file_does_not_tell_is_left_out_or_called_assumed(tmp_path: Path) -> None:
    torch.save({"model": published.full(width=24, decoder=16)}, tmp_path / "odd.pth")

    found = inspect(tmp_path / "odd.pth")

    assert (found.model["width"], found.model["decoder_width"]) == (24, 16)
    assert not {"num_heads", "decoder_heads", "mask_ratio"} & found.model.keys()
    assert found.model["normalize_target"] is True
    assert {name for name, how in found.told.items() if how.startswith("assumed")} == {
        "activation",
        "norm_eps",
        "normalize_target",
        "pixels",
    }
    assert ("num heads", "not stated", "not said (--heads)") in found.rows()
    assert ("decoder heads", "not stated", "not said (--decoder-heads)") in found.rows()


def test_our_folder_is_described_by_its_configuration(tmp_path: Path) -> None:
    save(create(CONFIG), tmp_path, facts={"license": "Apache-2.0"})

    found = inspect(tmp_path)

    assert found.format == "mae"
    assert found.license == "Apache-2.0"
    fields = to_dict(CONFIG) | to_dict(ObjectiveConfig())
    assert found.model == fields | {"image_size": (12, 20)}
    assert set(found.told.values()) == {"described"}


def test_an_encoder_alone_has_no_fields_of_a_decoder_and_no_target(tmp_path: Path) -> None:
    torch.save({"model": published.encoder_only()}, tmp_path / "theirs.pth")
    save(create(CONFIG).encoder, tmp_path / "ours")

    for name in ("theirs.pth", "ours"):
        found = inspect(tmp_path / name)
        assert not found.has_decoder
        assert not [field for field in found.model if "decoder" in field]
        assert "normalize_target" not in found.model


@pytest.mark.parametrize(("norm", "pool"), [("fc_norm", "mean"), ("norm", "cls")])
def test_a_published_head_tells_its_classes_and_what_it_classifies(
    tmp_path: Path, norm: str, pool: str
) -> None:
    state = published.encoder_only()
    for part in ("weight", "bias"):
        state[f"{norm}.{part}"] = state.pop(f"norm.{part}")
    state |= {"head.weight": torch.zeros(7, 192), "head.bias": torch.zeros(7)}
    torch.save({"model": state}, tmp_path / "tuned.pth")

    found = inspect(tmp_path / "tuned.pth")

    assert (found.num_classes, found.pool) == (7, pool)
    assert ("num classes", "7", "") in found.rows()


def test_a_classifier_of_ours_tells_them_too(tmp_path: Path) -> None:
    config = FinetuneConfig(model=CONFIG, num_classes=3, pool="cls")
    model, _ = initial_classifier(None, config)
    save(model, tmp_path, class_names=("ant", "bee", "cat"))

    found = inspect(tmp_path)

    assert (found.num_classes, found.pool) == (3, "cls")


@pytest.mark.parametrize("tuned", [False, True])
def test_a_published_digest_tells_file_licence_and_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, tuned: bool
) -> None:
    kind = "finetuned" if tuned else "pretrain"
    monkeypatch.setattr(module, "_SIZES", {"ViT of width 192, 2 blocks, patch 16": "base"})
    state = published.filled(published.encoder_shapes(192, 2, patch=16, patches=196))
    if tuned:
        state |= {"head.weight": torch.zeros(1000, 192), "head.bias": torch.zeros(1000)}
    torch.save({"model": state}, tmp_path / "renamed.pth")
    digest = hashlib.md5((tmp_path / "renamed.pth").read_bytes()).hexdigest()

    other = inspect(tmp_path / "renamed.pth")
    monkeypatch.setattr(module, "_DIGESTS", {("base", kind): digest[:6]})
    found = inspect(tmp_path / "renamed.pth")

    assert (other.published_file, other.license) == (None, None)
    assert found.published_file == f"mae_{kind}_vit_base.pth"
    assert found.license == "CC-BY-NC 4.0, not for commercial use"
    assert found.told.get("normalize_target") == (None if tuned else "by its digest")


def test_only_what_could_be_a_published_file_is_read_for_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(hashlib, "file_digest")
    torch.save({"model": published.encoder_only()}, tmp_path / "small.pth")

    assert inspect(tmp_path / "small.pth").published_file is None


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_numbers_that_are_not_finite_are_counted_some_tensors_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 300_000)
    state = published.full()
    state["cls_token"][0, 0, :5] = float("nan")
    state["blocks.1.attn.qkv.bias"][9] = float("inf")
    state["norm.bias"] = state["norm.bias"].bfloat16()
    state["norm.bias"][7] = float("-inf")
    if kind != "old":
        # Of which older files cannot hold any.
        state["mask_token"] = state["mask_token"].to(torch.float8_e4m3fn)
    state["mask_token"][0, 0, :2] = float("nan")
    if kind == "safetensors":
        save_file(state, tmp_path / "nan")
    else:
        torch.save(state, tmp_path / "nan", _use_new_zipfile_serialization=kind == "zip")

    assert inspect(tmp_path / "nan").not_finite == 9


def test_everything_found_is_plain_json(tmp_path: Path) -> None:
    save(create(CONFIG), tmp_path / "ours")
    published.checkpoint(tmp_path / "grey.pth", published.full(channels=1))

    for path in (tmp_path / "ours", tmp_path / "grey.pth"):
        found = json.loads(json.dumps(inspect(path)._asdict()))
        assert found["model"]["patch_size"] == 4


_MEASURE = """
import resource, sys, torch, safetensors.torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from mae.weights.tools.inspect import inspect
found = inspect(sys.argv[1])
print(found.size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are in other units elsewhere")
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_large_file_is_looked_through_in_little_memory(tmp_path: Path, kind: str) -> None:
    """ViT-B, 343 MB: the peak beyond importing torch stays under 100 MB, the NaN check included."""
    state = published.encoder_shapes(768, 12, patch=16, patches=196)
    weights = {name: torch.zeros(shape) for name, shape in state.items()}
    path = tmp_path / f"base.{kind}"
    torch.save({"model": weights}, path) if kind == "pth" else save_file(weights, path)

    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, path], capture_output=True, text=True, check=True
    )

    size, kilobytes = done.stdout.split()
    assert size == "vit-b/16"
    assert int(kilobytes) < 100_000
