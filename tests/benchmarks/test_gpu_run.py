"""The whole of `make gpu` on a card that is made up: what is tried, measured and written."""

from __future__ import annotations

import json
import subprocess
import time
from collections import deque
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import measuring, report
from benchmarks.gpu.sides import our_step

from mae.model.autoencoder import MaskedAutoencoder
from tests.images import image
from tests.model.tiny import tiny_config

ROOM = 9  # images that fit


class _Event:
    """A clock of the host in the place of the card's."""

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: _Event) -> float:
        return 1000 * (other.at - self.at)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> deque[int]:
    """Put a CPU in the place of a card; gives the batches that the model meets."""
    met, forward = deque[int](), MaskedAutoencoder.forward

    def limited(self: MaskedAutoencoder, images: torch.Tensor, **given: torch.Tensor) -> object:
        met.append(len(images))
        if len(images) > ROOM:
            raise torch.cuda.OutOfMemoryError("made up")
        return forward(self, images, **given)

    monkeypatch.setattr(MaskedAutoencoder, "forward", limited)
    fakes = {
        "get_device_capability": lambda: (8, 0),
        "get_device_properties": lambda _: SimpleNamespace(name="NVIDIA L4", total_memory=2**34),
        "synchronize": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "max_memory_allocated": lambda: 9_000_000,
        "memory_allocated": lambda: 2_000_000,
        "Event": _Event,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    # Not torch's own, by which the optimiser would look for the card.
    monkeypatch.setattr(command, "has_gpu", lambda: True)
    config, cpu = tiny_config(grid=(4, 4)), torch.device("cpu")
    monkeypatch.setattr(measuring, "DEVICE", cpu)
    # A compiler and a graph belong to the card: the steps behind them are the eager ones here.
    monkeypatch.setattr(torch, "compile", lambda loss, **_: loss)
    monkeypatch.setattr(measuring, "compile_blocks", lambda _: None)
    monkeypatch.setattr(measuring, "graphed_step", lambda state, config, _: our_step(state, config))
    monkeypatch.setattr(measuring, "model_config", lambda _: config)
    monkeypatch.setattr(measuring, "draw_images", _draw)
    monkeypatch.setattr(measuring, "free", lambda: None)  # a second each, so many objects are there
    monkeypatch.setattr(measuring, "on_device", lambda feed, _: feed)
    # However busy the machine is, no part of the benchmark is cut short by its limit.
    clock = SimpleNamespace(monotonic=lambda: 0.0, perf_counter=time.perf_counter)
    monkeypatch.setattr(measuring, "time", clock)
    monkeypatch.setattr(measuring, "LOADER_STEPS", 6)
    monkeypatch.setattr(measuring, "STEPS", 2)
    monkeypatch.setattr(report, "_driver", lambda: "1.2.3")
    return met


def _draw(folder: Path) -> None:
    for number in range(3):
        image(40, 50, seed=number).save(folder / f"{number:03}.jpg")


@pytest.mark.slow
def test_a_card_is_measured_and_written_down(
    tried: deque[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, values = tmp_path / "docs" / "page.md", tmp_path / "runs" / "values.json"

    assert command.main([f"--out={page}", f"--json={values}"]) == 0

    assert capsys.readouterr().out.strip() == page.read_text().strip()
    found = json.loads(values.read_text())
    sides = [(row["model"], row["precision"], row["side"]) for row in found["steps"]]
    assert sides == [
        (p.model, p.precision, side) for p in measuring.parts("bf16") for side in p.sides
    ]
    for number, row in enumerate(found["steps"]):
        # Three times as many fit beside a CUDA graph, else twice.
        assert row["batch"] == (2 if number < len(measuring.B_SIDES) else 4) and row["note"] == ""
        assert len(row["seconds"]) == len(row["ratios"]) == 10 and min(row["ratios"]) > 0
        assert (row["peak_bytes"] is None) == (row["side"] == measuring.GRAPHED)
    assert {row["ratios"][0] for row in found["steps"] if row["side"] == "mae"} == {1.0}
    assert [*tried][:9] == [1536, 768, 384, 192, 96, 48, 24, 12, 6]
    assert found["tests"] == "not run" and found["left_out"] == []
    assert found["loader"]["batch"] == 2 and found["loader"]["fed"] > 0


def test_a_model_that_does_not_fit_is_a_row_with_a_note(
    tried: deque[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.ROOM", 0)

    part = measuring.Part("vit-h/14", "bf16", 8, ("mae",))

    (row,) = measuring.measure(part, peak=None, until=time.monotonic() + 9)

    assert row.batch is None and row.note == "does not fit this card"


def test_no_part_begins_when_the_time_is_over(
    tried: deque[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "TOTAL_S", 0.0)
    page = tmp_path / "page.md"

    assert command.main([f"--out={page}"]) == 0

    left_out = "vit-b/16 in bf16 (no time left), vit-l/16 in bf16 (no time left)"
    assert left_out in page.read_text() and not tried


def test_a_side_that_no_longer_fits_beside_the_others_is_a_row_with_a_note(
    tried: deque[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object, batch: object) -> torch.Tensor:
        calls.append(0)
        if len(calls) > measuring.WARM_STEPS:
            raise torch.cuda.OutOfMemoryError("made up")
        return torch.zeros(())

    calls = list[int]()
    monkeypatch.setattr(measuring, "peer_step", lambda model, config: partial(full, model))
    part = measuring.Part("vit-b/16", "bf16", 8, ("mae", "textbook", "mae, eager"))

    rows = measuring.measure(part, peak=None, until=9.0)

    assert [row.note for row in rows] == ["", "OutOfMemoryError: made up", ""]
    assert [len(row.ratios) for row in rows] == [10, 0, 10]


def test_a_part_that_fails_is_left_out_and_the_next_one_measured(
    tried: deque[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(part: measuring.Part, **_: object) -> tuple[report.SideRow, ...]:
        if part.precision == "bf16":
            raise RuntimeError("made up\nand more")
        return (report.SideRow(part.model, part.precision, "mae"),)

    monkeypatch.setattr(measuring, "measure", measure)
    page = tmp_path / "page.md"

    assert command.main([f"--out={page}"]) == 0

    assert "vit-h/14 in bf16 (RuntimeError: made up), loader and step (" in page.read_text()
    assert "| vit-b/16 | float32 | mae |" in page.read_text()


@pytest.mark.parametrize("late", [False, True], ids=["in_time", "too_late"])
def test_the_tests_come_last_and_their_result_is_in_the_report(
    *, late: bool, tried: deque[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(words: list[str], *, timeout: float, **_: object) -> object:
        assert page.is_file()  # what was measured before is safe
        assert words[-1] == "tests/gpu" and timeout > command.TESTS_S - 1
        if late:
            raise subprocess.TimeoutExpired(words, timeout, output=b"..........")
        return subprocess.CompletedProcess(words, 1, b"F....\n1 failed, 4 passed in 9 s\n")

    monkeypatch.setattr(measuring, "parts", lambda _: ())
    monkeypatch.setattr(command, "LIMITS_S", ())
    monkeypatch.setattr(command.subprocess, "run", run)
    page = tmp_path / "page.md"

    assert command.main(["--tests", f"--out={page}"]) == 1

    (said,) = (line for line in page.read_text().splitlines() if line.startswith("Tests on"))
    assert (
        said.endswith(" s: ...........") if late else said.endswith(": 1 failed, 4 passed in 9 s.")
    )
    assert late == ("not done after " in said)
