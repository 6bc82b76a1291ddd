"""Training on several ranks is training on one: real processes, started by torchrun."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mae.data.sampling.order import shuffled
from mae.runs.log import read_rows
from tests.jobs import ranked_runs
from tests.jobs.conftest import write_classes
from tests.jobs.kill_storm import end_state
from tests.jobs.ranked_runs import BRIEF, ELASTIC, PRETRAIN, SPOILED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # many runs, on a busy machine

STEPS, G, COUNT = PRETRAIN.steps, PRETRAIN.batch, 50
assert STEPS is not None


def torchrun(count: int, folder: Path, what: str) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    many = [f"--nproc-per-node={count}", "-m", "tests.jobs.ranked_runs", str(folder), what]
    done = subprocess.run(
        [*launcher, *many], capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make every run once: on two ranks, on one, on three; one run on all of them in turn."""
    folder = tmp_path_factory.mktemp("runs")
    write_classes(folder / "classes", "a", "b", "c", count=12)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torchrun(2, folder, "two")
    ranked_runs.elastic(folder / "elastic", start=2, stop_after=5)
    torchrun(3, folder, "three")
    ranked_runs.elastic(folder / "elastic-one", start=0, stop_after=None)
    # Two micro-batches, one after the other: the sums that two ranks make.
    halves = ranked_runs.replace(PRETRAIN, micro_batch=G // 2)
    ranked_runs.pretrain(folder / "one", halves)
    ranked_runs.pretrain(folder / "one-spoiled", halves, spoil=True)
    ranked_runs.pretraining.pretraining_loss = ranked_runs.pretraining_loss
    ranked_runs.finetune(folder / "one-tuned")
    yield folder
    torch.set_num_threads(threads)


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_bytes())
    return found


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_rows(run / "log.jsonl")]


def weights(run: Path) -> bytes:
    return (run / "weights" / "model.safetensors").read_bytes()


def norm_of_difference(one: Path, other: Path) -> float:
    """Norm of the difference of all weights, relative to the norm of the weights."""
    a, b = (load_file(run / "weights" / "model.safetensors") for run in (one, other))
    squares = [(((a[n] - b[n]) ** 2).sum().item(), (a[n] ** 2).sum().item()) for n in a]
    return math.sqrt(sum(s for s, _ in squares) / sum(s for _, s in squares))


def test_two_ranks_have_the_bits_of_one_with_two_micro_batches(runs: Path) -> None:
    assert len(losses(runs / "two")) == STEPS
    assert losses(runs / "two") == losses(runs / "one")
    assert end_state(runs / "two") == end_state(runs / "one")


def test_nan_on_one_rank_skips_the_step_on_all(runs: Path) -> None:
    rows = [json.loads(line) for line in (runs / "two-spoiled/log.jsonl").read_text().splitlines()]
    skipped = [row["skipped"] for row in rows if "skipped" in row]

    assert len(skipped) == sum(SPOILED in ids for ids in order(STEPS)) > 0
    assert all(SPOILED in ids and len(ids) == G for ids in skipped)
    assert end_state(runs / "two-spoiled") == end_state(runs / "one-spoiled")
    assert end_state(runs / "two-spoiled") != end_state(runs / "two")


@pytest.mark.parametrize(("many", "one"), [("three", "one"), ("two-tuned", "one-tuned")])
def test_other_sums_differ_by_rounding_alone(runs: Path, many: str, one: str) -> None:
    """Shares of 3, 3 and 2 images; mixed images with drop path and averaged weights."""
    there, here = losses(runs / many), losses(runs / one)
    worst = max(abs(a - b) / b for a, b in zip(there, here, strict=True))
    norm = norm_of_difference(runs / many, runs / one)
    print(f"{many}: losses within {worst:.1e}, weights within {norm:.1e}")

    assert len(here) == STEPS
    assert worst < 1e-4
    assert 0 < norm < 1e-4


def test_a_fine_tuned_classifier_of_two_ranks_has_the_scores_of_one(runs: Path) -> None:
    there, here = (json.loads((runs / run / "results.json").read_bytes())
                   for run in ("two-tuned", "one-tuned"))  # fmt: skip

    assert there["top1"] == here["top1"] and there["images"] == here["images"] == 6
    assert there["loss"] == pytest.approx(here["loss"], rel=1e-4)


@pytest.mark.parametrize("what", ["", "-tuned", "-muon", "-part"])
def test_parts_of_the_parameters_are_trained_as_whole_ones(runs: Path, what: str) -> None:
    """AdamW; averaged weights; Muon, clipped; LARS, frozen blocks, other micro-batches a rank."""
    there, here = losses(runs / f"sharded{what}"), losses(runs / f"two{what}")
    worst = max(abs(a - b) / b for a, b in zip(there, here, strict=True))
    norm = norm_of_difference(runs / f"sharded{what}", runs / f"two{what}")
    print(f"sharded{what}: losses within {worst:.1e}, weights within {norm:.1e}")

    assert record(runs / f"sharded{what}")["config"]["strategy"] == "fsdp"
    assert worst < 1e-4 and norm < 1e-4


def test_parts_in_bf16_are_trained_as_whole_ones_to_its_rounding(runs: Path) -> None:
    there, here = losses(runs / "sharded-half"), losses(runs / "two-half")
    worst = max(abs(a - b) / b for a, b in zip(there, here, strict=True))
    print(f"bf16: losses within {worst:.1e}")

    assert 0 < worst < 2**-7


def test_rank_0_draws_and_checks_the_gathered_model(runs: Path) -> None:
    there, here = (
        [row["loss"] for row in read_rows(runs / run / "health.jsonl")]
        for run in ("sharded", "two")
    )

    assert there == pytest.approx(here, rel=1e-4) and len(here) > 1
    drawn = [
        {path.name for path in (runs / run / "images").iterdir()} for run in ("sharded", "two")
    ]
    assert drawn[0] == drawn[1]


def test_nan_on_one_rank_skips_the_step_on_all_that_hold_parts(runs: Path) -> None:
    lines = (runs / "brief-spoiled" / "log.jsonl").read_text().splitlines()
    skipped = [row["skipped"] for row in map(json.loads, lines) if "skipped" in row]

    assert skipped == [ids for ids in order(BRIEF.steps or 0) if SPOILED in ids] != []
    first = next(i for i, ids in enumerate(order(STEPS)) if SPOILED in ids)
    assert losses(runs / "brief-spoiled")[: first + 1] != losses(runs / "brief")[: first + 1]


def test_a_stopped_run_that_holds_parts_ends_with_the_bits_of_an_undisturbed_one(
    runs: Path,
) -> None:
    assert [(runs / f"brief-stopped-{rank}").read_text() for rank in range(2)] == ["75 5"] * 2
    assert weights(runs / "brief-stopped") == weights(runs / "brief")
    assert losses(runs / "brief-stopped") == losses(runs / "brief")


def test_the_weights_file_has_the_same_bytes_whichever_strategy_writes_it(runs: Path) -> None:
    """From a sharded checkpoint of the last step, and from a plain one."""
    alone = runs / "brief-by-one"
    ranked_runs.written_again(runs / "brief", alone, BRIEF)

    assert weights(runs / "brief-by-ddp") == weights(alone) == weights(runs / "brief")
    assert weights(runs / "two-by-fsdp") == weights(runs / "two")


def test_minutes_and_micro_batch_are_measured_by_ranks_that_hold_parts(runs: Path) -> None:
    found = record(runs / "sharded-timed")

    assert found["finished"] and found["num_steps"] > 0 and found["micro_batch"] == G // 2


def order(steps: int) -> list[list[int]]:
    """List the ids of each step, as one process takes them."""
    per_epoch = COUNT // G
    return [
        shuffled(np.arange(place * G, (place + 1) * G), n=COUNT, seed=0, epoch=epoch).tolist()
        for epoch, place in (divmod(step, per_epoch) for step in range(steps))
    ]


def test_a_run_through_two_one_and_three_ranks_sees_each_image_once_an_epoch(runs: Path) -> None:
    starts = [
        [json.loads((runs / f"elastic-{start}-{rank}.json").read_bytes()) for rank in range(ranks)]
        for start, ranks in ((1, 2), (2, 1), (3, 3))
    ]

    steps = [
        sum(parts, [])
        for start in starts
        for parts in zip(*(r["seen"] for r in start), strict=True)
    ]
    assert steps == order(ELASTIC.steps or 0)
    ends = [[(rank["code"], rank["state"], rank["kept"]) for rank in start] for start in starts]
    stopped = [(75, "stopped", [f"step-{step:08d}" for step in kept]) for kept in ((2, 4), (8, 9))]
    assert ends[0] == [stopped[0]] * 2  # a signal to the second rank alone
    assert ends[1] == [stopped[1]]
    assert {end[:2] for end in ends[2]} == {(0, "done")}
    assert record(runs / "elastic")["world_sizes"] == [2, 1, 3]
    there, here = losses(runs / "elastic"), losses(runs / "elastic-one")
    assert there == pytest.approx(here, rel=1e-4)
    assert norm_of_difference(runs / "elastic", runs / "elastic-one") < 1e-4


@pytest.mark.parametrize("run", ["failed", "sharded-failed"])
def test_an_error_of_one_rank_in_a_step_is_raised_on_all(runs: Path, run: str) -> None:
    assert [(runs / f"{run}-{rank}").read_text() for rank in range(2)] == ["of rank 1"] * 2
    assert not list((runs / run).glob("checkpoints/*"))


def test_the_record_says_how_a_run_was_trained(runs: Path) -> None:
    found = record(runs / "three")

    assert (found["state"], found["finished"], found["threads"]) == ("done", True, 1)
    assert found["world_sizes"] == [3] and record(runs / "one")["world_sizes"] == [1]


def test_one_process_imports_nothing_of_parallel_that_several_need(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom tests.jobs.ranked_runs import *\n"
        f"pretrain(Path({str(tmp_path / 'run')!r}), replace(PRETRAIN, steps=1))\n"
        "print(sorted(name for name in sys.modules if name.startswith('mae.parallel.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    found = done.stdout.strip()
    assert found == "['mae.parallel.processes', 'mae.parallel.shards', 'mae.parallel.thread_group']"
