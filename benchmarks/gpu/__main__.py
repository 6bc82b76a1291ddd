"""`python -m benchmarks.gpu [--tests] [--out PAGE] [--json FILE]`, as `make gpu`; 8 minutes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.cuda import is_available as has_gpu

if TYPE_CHECKING:
    from benchmarks.gpu.report import Report

NO_GPU = "not run: no GPU here"
TOTAL_S = 470.0
TESTS_S = 110.0
"""Kept for the tests, which come last and have what is left."""
LOADER_S = 50.0
LIMITS_S = (180.0, 55.0, 35.0, 35.0)
"""Of the parts, in their order."""
LEAST_S = 25.0
"""A part with less time than this is left out."""


def main(words: Sequence[str]) -> int:
    """Measure, then run the tests if asked; the report is written after every part."""
    asked = _arguments(words)
    if not has_gpu():
        print(NO_GPU)
        return 0
    end, passed = time.monotonic() + TOTAL_S, True
    report = _measure(end - asked.tests * TESTS_S, page=asked.out, values=asked.json)
    if asked.tests:
        passed, tests = _run_tests(timeout=max(1.0, end - time.monotonic()))
        report = _write(report._replace(tests=tests), asked.out, asked.json)
    print(report.page())
    return 0 if passed else 1


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--tests", action="store_true", help="run tests/gpu as well, last")
    page = Path("docs", f"gpu-{time.strftime('%Y-%m-%d')}.md")
    parser.add_argument("--out", type=Path, default=page, help=f"report to write; {page}")
    parser.add_argument("--json", type=Path, help="the same for machines")
    return parser.parse_args(words)


def _run_tests(*, timeout: float) -> tuple[bool, str]:
    """Run tests/gpu in a process of its own; the last line of its output is the result."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"]
    late = ""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=timeout, check=False)
        output, passed = done.stdout, done.returncode == 0
    except subprocess.TimeoutExpired as error:
        output, passed, late = error.stdout or b"", False, f"not done after {timeout:.0f} s: "
    text = output.decode(errors="replace")
    print(text)
    return passed, late + text.strip().rpartition("\n")[2].strip("= ")


def _write(report: Report, page: Path, values: Path | None) -> Report:
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(report.page())
    if values is not None:
        values.parent.mkdir(parents=True, exist_ok=True)
        values.write_text(json.dumps(report.values(), indent=1))
    return report


def _measure(end: float, *, page: Path, values: Path | None) -> Report:
    # Only where there is a GPU: without one, or without transformers, `NO_GPU` is printed all the
    # same.
    from benchmarks.gpu.arithmetic import find_peak, half_precision
    from benchmarks.gpu.measuring import free, measure, measure_loader, noted, parts
    from benchmarks.gpu.report import Report, this_machine

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    machine = this_machine()
    peak, half = find_peak(machine.card), half_precision(torch.cuda.get_device_capability())
    report = Report(time.strftime("%Y-%m-%d"), machine, peak_known=peak is not None)

    def until(limit: float) -> float | None:
        now = time.monotonic()
        return min(now + limit, end) if end - now > LEAST_S else None

    for part, limit in zip(parts(half), LIMITS_S, strict=True):
        if (stop := until(limit)) is None:
            report = report.without(f"{part.model} in {part.precision}", "no time left")
            continue
        try:
            report = report._replace(steps=report.steps + measure(part, peak=peak, until=stop))
        except Exception as error:  # whatever fails on a card, the other parts are measured
            report = report.without(f"{part.model} in {part.precision}", noted(error))
        report = _write(report, page, values)
    batch = report.steps[0].batch if report.steps else None
    if batch is None or (stop := until(LOADER_S)) is None:
        report = report.without("loader and step", "no time or no batch left")
    else:
        try:
            report = report._replace(loader=measure_loader(half, count=batch, until=stop))
        except Exception as error:
            report = report.without("loader and step", noted(error))
    free()  # for the tests
    return _write(report, page, values)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
