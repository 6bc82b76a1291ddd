"""Name planted failures: `python -m benchmarks.health OUT --folder IMAGES`.

Runs 12 planted failures and 12 sound runs of very small networks, in about half an hour of one
core, and prints which of them the findings of a health check name, and which the loss alone. OUT
keeps a line for each run, so that the command can be given again. `--correlate` compares the
label-free figures with a probe instead (see `correlate`).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.health import correlate
from benchmarks.health.kept import keep, kept
from benchmarks.health.planted import HEALTHY, PLANTED, Case
from mae.errors import MaeError
from mae.evaluation.findings import findings
from mae.jobs.pretrain import pretrain
from mae.runs.log import read_rows
from mae.train.meter import losses, running_mean

FALLEN = 0.2
"""By so much of its first value the loss of a sound run falls; less is named by the loss alone."""


def measure(case: Case, folder: Path, out: Path) -> dict[str, Any]:
    """Train a case in a new folder; return its rows of the health check and of the log."""
    images = case.images(folder)
    began, error = time.process_time(), ""
    with case.plant():
        try:
            pretrain(case.config, data=images, out=out, quiet=True)
        except MaeError as raised:
            error = str(raised)
    rows = [
        {name: value for name, value in row.items() if name not in ("worst", "best")}
        for row in read_rows(out / "health.jsonl")
    ]
    log = losses(read_rows(out / "log.jsonl"))
    seconds = time.process_time() - began
    return {"name": case.name, "rows": rows, "losses": log, "error": error, "seconds": seconds}


def named(case: Case, run: dict[str, Any]) -> dict[str, int]:
    """Return the names of what is found in a run, with the step at which it first is."""
    first: dict[str, int] = {}
    steps = case.config.steps
    assert steps is not None
    for end, row in enumerate(run["rows"], start=1):
        for finding in findings(run["rows"][:end], num_steps=steps):
            first.setdefault(finding.name, row["step"])
    return first


def by_loss(run: dict[str, Any]) -> bool:
    """Return whether the loss alone names a run: an error, or a loss that has not fallen."""
    points = run["losses"]
    return bool(run["error"]) or running_mean(points) > (1 - FALLEN) * points[0][1]


def table(runs: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table, in Markdown."""
    yield "| run | half | named, at step | by the loss alone | gain over in-fill, dB |"
    yield "|---|---|---|---|---|"
    for cases in (PLANTED, HEALTHY):
        for number, case in enumerate(cases, start=1):
            if (run := runs.get(case.name)) is None:
                continue
            found = ", ".join(f"{name} ({step:,})" for name, step in named(case, run).items())
            gain = f"{run['rows'][-1]['gain']:+.1f}" if run["rows"] else "-"
            half = "chosen on" if number % 2 else "reported"
            loss = "yes" if by_loss(run) else "no"
            yield f"| {case.name} | {half} | {found or '-'} | {loss} | {gain} |"


def main(words: Sequence[str]) -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.health")
    parser.add_argument("out", type=Path, help="folder of the figures")
    parser.add_argument("--folder", type=Path, required=True, help="images, in class folders")
    parser.add_argument("--half", type=int, choices=(0, 1), help="1: the odd numbers alone")
    parser.add_argument("--correlate", action="store_true")
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.correlate:
        correlate.main(asked.out, asked.folder)
        return
    path = asked.out / "runs.jsonl"
    for cases in (PLANTED, HEALTHY):
        for number, case in enumerate(cases, start=1):
            if case.name in kept(path) or asked.half not in (None, number % 2):
                continue
            out = Path(tempfile.mkdtemp())
            keep(path, measure(case, asked.folder, out))
            shutil.rmtree(out)
            print(case.name, flush=True)
    print("\n".join(table(kept(path))))


if __name__ == "__main__":
    main(sys.argv[1:])
