"""A few trials of the fault tests of `make chaos`, and what its score says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.bench import Bench
from tests.chaos.catalogue import TESTS
from tests.chaos.harness import (
    ROOT,
    FaultTest,
    NotBuilt,
    Trial,
    is_passed,
    line_of,
    run_all,
    run_one,
    score_of,
)

FEW = {
    "kill-random-step": 2,
    "kill-each-write": 25,
    "kill-in-purge": 8,
    "truncated-files": 24,
    "flipped-bits": 100,
    "all-damaged": 2,
    "failing-writes": 2,
    "three-failed-saves": 1,
    "five-bad-steps": 1,
    "signals": 5,
    "second-signal": 1,
    "races": 2,
}
"""Trials of each fault test in `make test`."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_a_few_trials_pass(name: str, tmp_path: Path) -> None:
    (test,) = [test for test in TESTS if test.name == name]

    result = run_one(test, tmp_path / "work", FEW[name])

    assert is_passed(result), line_of(result)


def passes(bench: Bench, count: int) -> Iterator[Trial]:
    yield from (Trial(measured=number) for number in range(count))


def fails_once(bench: Bench, count: int) -> Iterator[Trial]:
    yield from (Trial("torn" if number == 1 else "") for number in range(count))


def crashes(bench: Bench, count: int) -> Iterator[Trial]:
    yield Trial()
    raise ZeroDivisionError("by zero")


def is_missing(bench: Bench, count: int) -> Iterator[Trial]:
    yield from ()
    raise NotBuilt("no launcher")


def fault_test(run: object, trials: int = 3) -> FaultTest:
    return FaultTest(run.__name__, "A promise.", run, trials, "steps")  # type: ignore[arg-type, attr-defined]


@pytest.mark.slow
def test_only_a_test_whose_every_trial_passed_counts(tmp_path: Path) -> None:
    tests = [fault_test(run) for run in (passes, fails_once, crashes, is_missing)]

    results = run_all(tests, tmp_path, again=False)

    assert [is_passed(result) for result in results] == [True, False, False, False]
    assert [result["passed"] for result in results] == [3, 2, 1, 0]
    assert results[1]["faults"] == ["trial 1: torn"]
    assert "ZeroDivisionError" in results[2]["faults"][0]
    assert "worst 2 steps" in line_of(results[0]) and "no launcher" in line_of(results[3])
    assert score_of(results).startswith("chaos: 1 of 4 tests, 6 of 12 trials, ")


@pytest.mark.slow
def test_a_stopped_start_goes_on_where_it_was(tmp_path: Path) -> None:
    run_all([fault_test(passes)], tmp_path, again=False)
    kept = (tmp_path / "passes.json").read_text()

    run_all([fault_test(passes), fault_test(fails_once)], tmp_path, again=False)

    assert (tmp_path / "passes.json").read_text() == kept
    (tmp_path / "passes.json").write_text(json.dumps(json.loads(kept) | {"source": "of before"}))
    run_all([fault_test(passes)], tmp_path, again=False)
    assert json.loads((tmp_path / "passes.json").read_text())["source"] != "of before"


def test_every_promise_stands_in_the_documentation() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()

    for test in TESTS:
        assert f"| `{test.name}` | {test.promise} | {test.trials:,} |" in page, test.name
