"""`python -m benchmarks.gpu [--tests] [--out PAGE] [--json FILE]`, as `make gpu`; 8 minutes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.cuda import is_available as has_gpu

NO_GPU = "not run: no GPU here"
TOTAL_S = 470.0
TESTS_S = 150.0
LOADER_S = 60.0
LIMITS_S = (190.0, 75.0, 45.0, 60.0)
"""Of the parts, in their order."""
LEAST_S = 15.0
"""A part with less time than this is left out."""


def main(words: Sequence[str]) -> int:
    """Run the tests if asked, measure, and write the report after every part."""
    asked = _arguments(words)
    if not has_gpu():
        print(NO_GPU)
        return 0
    end = time.monotonic() + TOTAL_S
    passed, tests = _run_tests() if asked.tests else (True, "not run")
    _measure(tests, end=end, page=asked.out, values=asked.json)
    return 0 if passed else 1


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--tests", action="store_true", help="run tests/gpu first")
    page = Path("docs", f"gpu-{time.strftime('%Y-%m-%d')}.md")
    parser.add_argument("--out", type=Path, default=page, help=f"report to write; {page}")
    parser.add_argument("--json", type=Path, help="the same for machines")
    return parser.parse_args(words)


def _run_tests() -> tuple[bool, str]:
    """Run tests/gpu in a process of its own, which gives all memory back."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=TESTS_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"not done after {TESTS_S:.0f} s"
    print(done.stdout)
    return done.returncode == 0, done.stdout.strip().rpartition("\n")[2].strip("= ")


def _measure(tests: str, *, end: float, page: Path, values: Path | None) -> None:
    # Only where there is a GPU: without transformers the line above is said all the same.
    from benchmarks.gpu.arithmetic import find_peak, half_precision
    from benchmarks.gpu.measuring import measure, measure_loader, parts
    from benchmarks.gpu.report import Report, this_machine

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    machine = this_machine()
    peak, half = find_peak(machine.card), half_precision(torch.cuda.get_device_capability())
    report = Report(time.strftime("%Y-%m-%d"), machine, peak_known=peak is not None, tests=tests)

    def write(report: Report) -> Report:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(report.page())
        if values is not None:
            values.parent.mkdir(parents=True, exist_ok=True)
            values.write_text(json.dumps(report.values(), indent=1))
        return report

    def until(limit: float) -> float | None:
        now = time.monotonic()
        return min(now + limit, end) if end - now > LEAST_S else None

    for part, limit in zip(parts(half), LIMITS_S, strict=True):
        if (stop := until(limit)) is None:
            left_out = (*report.left_out, f"{part.model} in {part.precision}")
            report = report._replace(left_out=left_out)
            continue
        report = write(report._replace(steps=report.steps + measure(part, peak=peak, until=stop)))
    batch = report.steps[0].batch if report.steps else None
    if batch is None or (stop := until(LOADER_S)) is None:
        report = report._replace(left_out=(*report.left_out, "loader and step"))
    else:
        report = report._replace(loader=measure_loader(half, count=batch, until=stop))
    print(write(report).page())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
