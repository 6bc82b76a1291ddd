"""Run fault tests one after the other, keep each result, and add up the score."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from mae.atomic import write_json_atomic
from mae.runs.directory import git_state, versions
from tests.chaos.bench import Bench

ROOT = Path(__file__).parents[2]
_MAX_FAULTS = 10


class NotBuilt(Exception):
    """The feature under test does not exist yet, or this machine cannot run the test."""


class Trial(NamedTuple):
    """Result of one trial."""

    fault: str = ""
    """What went wrong; empty if the trial passed."""
    measured: float = 0.0
    """In the unit of the test: seconds, steps."""


class FaultTest(NamedTuple):
    """A promise, and the trials that could show it false."""

    name: str
    promise: str
    """One sentence for docs/reliability.md."""
    run: Callable[[Bench, int], Iterator[Trial]]
    """Yields one result a trial, as many as asked for."""
    trials: int
    unit: str = "s"
    """Unit of `Trial.measured`, of which the largest is printed."""


def run_all(tests: Sequence[FaultTest], folder: Path, *, again: bool) -> list[dict[str, Any]]:
    """Run the tests that have no result in the folder yet; print a line for each.

    Args:
        tests: the tests, in this order.
        folder: holds one JSON file a test, and the runs of failed trials under `work`.
        again: whether to run tests that have a result as well.

    Returns:
        The results of all tests.
    """
    results = []
    code = source_digest()
    for test in tests:
        file = folder / f"{test.name}.json"
        result = None if again else _stored(file, code, test.trials)
        if result is None:
            result = run_one(test, folder / "work" / test.name) | {"source": code}
            write_json_atomic(file, result)
        print(line_of(result), flush=True)
        results.append(result)
    return results


def run_one(test: FaultTest, work: Path, trials: int | None = None) -> dict[str, Any]:
    """Run one test in an empty folder, which is left behind only if a trial fails.

    Args:
        test: the test.
        work: the folder.
        trials: number of trials; none: those of the test.
    """
    count = test.trials if trials is None else trials
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    began, passed, seen, worst = time.monotonic(), 0, 0, 0.0
    faults: list[str] = []
    not_built = ""
    bench = Bench(work)
    try:
        for trial in test.run(bench, count):
            passed += not trial.fault
            worst = max(worst, trial.measured)
            if trial.fault:
                faults.append(f"trial {seen}: {trial.fault}")
            seen += 1
        if seen != count:
            faults.append(f"{seen} of {count} trials were run")
    except NotBuilt as error:
        not_built = str(error) or "not built"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(where.filename).name}:{where.lineno}"
        faults.append(f"trial {seen}: {type(error).__name__} at {at}: {error}")
    finally:
        bench.close()
    if passed == count and not faults:
        shutil.rmtree(work)
    return {
        "name": test.name, "promise": test.promise, "passed": passed, "trials": count,
        "seconds": round(time.monotonic() - began, 1), "worst": round(worst, 2),
        "unit": test.unit, "not_built": not_built, "faults": faults[:_MAX_FAULTS],
        "notes": bench.notes,
    }  # fmt: skip


def is_passed(result: dict[str, Any]) -> bool:
    """Return whether every trial passed."""
    return bool(result["passed"] == result["trials"] and not result["faults"])


def line_of(result: dict[str, Any]) -> str:
    """Return the line that is printed for a result."""
    verdict = "ok" if is_passed(result) else "not built" if result["not_built"] else "FAILED"
    head = f"{verdict:9} {result['name']:24} {result['passed']:>5,}/{result['trials']:<5,}"
    worst = f"worst {result['worst']:g} {result['unit']}" if result["worst"] else ""
    more = [worst, result["not_built"], *result["faults"][:2], *result["notes"]]
    return f"{head} {result['seconds']:>6,.0f} s  {'; '.join(filter(None, more))}"


def score_of(results: Sequence[dict[str, Any]]) -> str:
    """Return the score line of all results."""
    tests = sum(map(is_passed, results))
    passed, trials = (sum(result[name] for result in results) for name in ("passed", "trials"))
    minutes = sum(result["seconds"] for result in results) / 60
    cores = len(os.sched_getaffinity(0))
    return (
        f"chaos: {tests} of {len(results)} tests, {passed:,} of {trials:,} trials, "
        f"{cores} cores, {minutes:.0f} min"
    )


def write_table(results: Sequence[dict[str, Any]], file: Path) -> None:
    """Write the score, the machine and all results as one JSON file."""
    where = {"time": f"{datetime.now(UTC):%Y-%m-%d %H:%M}", "git": git_state()}
    where |= {"cores": len(os.sched_getaffinity(0)), "versions": versions()}
    write_json_atomic(file, {"score": score_of(results), **where, "tests": list(results)})


def existing(*words: str) -> Callable[[Bench, int], Iterator[Trial]]:
    """Return a test that runs tests of `make test` that already show a promise.

    Args:
        words: files and options for pytest; with fewer tests than trials it fails.
    """

    def run(bench: Bench, count: int) -> Iterator[Trial]:
        report = bench.folder / "junit.xml"
        command = ["python", "-m", "pytest", "-q", "--tb=line", f"--junitxml={report}", *words]
        missing = [w for w in words if w.startswith("tests/") and not (ROOT / w).exists()]
        if missing:
            raise NotBuilt(f"no {missing[0]}")
        done = bench.run_python(command[1:], cwd=ROOT)
        cases = report.read_text().count("<testcase ") if report.exists() else 0
        bad = [line for line in done.splitlines() if line.startswith(("FAILED", "ERROR"))]
        for number in range(count):
            if number < min(cases, count) - len(bad):
                yield Trial()
            else:
                yield Trial((bad or [f"{cases} tests, expected {count}"])[0])

    return run


def _stored(file: Path, code: str, trials: int) -> dict[str, Any] | None:
    """Return the result of an earlier start of the same code with as many trials."""
    if not file.exists():
        return None
    result: dict[str, Any] = json.loads(file.read_text())
    return result if (result["source"], result["trials"]) == (code, trials) else None


def source_digest() -> str:
    """Digest of the package's source, without which a stored result would be of other code."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "src" / "mae").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def readers_of(pid: int) -> list[int]:
    """Return the reader processes that a process has started and that still run."""
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    children = [int(word) for word in done.stdout.split()]
    return [child for child in children if b"spawn_main" in _command_of(child)]


def _command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return b""
