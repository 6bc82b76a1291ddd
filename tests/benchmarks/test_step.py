"""The sides of the step's benchmark train, are counted, and are reported with their settings."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from benchmarks.processor import PRECISIONS
from benchmarks.step import __main__ as command
from benchmarks.step import measuring
from benchmarks.step.sides import NAMES, PEERS, Side, make_batch, make_sides
from torch import Tensor

from mae.config.model import ModelConfig
from mae.config.objective import ObjectiveConfig
from mae.model.costs import activation_bytes

SMALL = ModelConfig(
    image_size=(20, 20),
    patch_size=4,
    width=24,
    depth=2,
    num_heads=3,
    decoder_width=16,
    decoder_depth=2,
    decoder_heads=2,
)


def side_of(name: str, precision: str = "float32") -> Side:
    (side,) = make_sides(name, SMALL, 3, [precision])
    return side


@pytest.mark.parametrize(("name", "precision"), [*product(NAMES, PRECISIONS)])
def test_every_side_learns_the_batch_it_is_given(name: str, precision: str) -> None:
    side, batch = side_of(name, precision), make_batch(name, SMALL, 3)
    for group in side.optimizer.param_groups:
        group["lr"] = 1e-3

    losses = [float(side.step(batch)) for _ in range(8)]

    assert losses[-1] < losses[0]
    assert side.updating > 0


@pytest.mark.parametrize("name", NAMES)
def test_sides_of_a_network_compute_in_their_own_precision_on_the_same_weights(name: str) -> None:
    dtypes = list[torch.dtype]()

    def note(module: torch.nn.Module, given: object, made: object) -> None:
        if isinstance(made, Tensor):
            dtypes.append(made.dtype)

    single, half = make_sides(name, SMALL, 3, PRECISIONS)
    batch = make_batch(name, SMALL, 3)
    for layer in single.model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(note)

    single.step(batch)
    in_float32 = {*dtypes}
    dtypes.clear()
    half.step(batch)

    assert in_float32 == {torch.float32} and {*dtypes} == {torch.bfloat16}
    assert single.model is half.model and single.optimizer is half.optimizer
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}


def test_what_ours_keeps_is_what_the_plan_counts() -> None:
    side, batch = side_of("mae"), make_batch("mae", SMALL, 3)

    kept = measuring.saved_bytes(side, batch)

    expected = 3 * activation_bytes(SMALL, ObjectiveConfig(), half=False, on_cpu=True).kept
    assert kept == pytest.approx(expected, rel=0.05)


def test_every_peer_keeps_more_than_ours() -> None:
    kept = {
        name: measuring.saved_bytes(side_of(name), make_batch(name, SMALL, 3)) for name in NAMES
    }

    assert min(kept, key=kept.__getitem__) == "mae"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a tiny network in the place of a size, and no process of its own for its memory."""
    monkeypatch.setitem(measuring.SIZES, "tiny", (SMALL, 3))
    monkeypatch.setattr(measuring, "_alone", lambda *_: 2**20)
    monkeypatch.setattr(measuring, "SQUARE", (8, 8, 8))
    monkeypatch.setattr(measuring, "our_default", lambda: "bf16")
    monkeypatch.setattr(command, "print_processor", lambda: {"name": "some processor"})


def test_the_report_has_each_peer_in_our_precision_and_in_its_default(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "runs" / "step.json"

    command.main(["--sizes=tiny", "--pairs=2", "--emulated", f"--json={file}"])

    found = json.loads(file.read_text())
    (size,) = found["sizes"]
    assert found["processor"] == {"name": "some processor"}
    assert {*found["settings"]} == {"mae", "peers"}
    assert [*size["precisions"]] == [*PRECISIONS] and size["default"] == "bf16"
    for precision, measured in size["precisions"].items():
        assert [*measured["whole"]] == [*PEERS] and len(measured["whole"]["textbook"]) == 3
        assert all(name.startswith(precision) for name in measured["product_gflops"])
        assert measured["share_of_product"] > 0
    assert [*size["by_default"]] == [*PEERS]
    assert "by default: textbook in float32 over ours in bf16" in capsys.readouterr().out
