"""What ranks cost: as many of one thread as there are cores, against one process of all threads.

`python -m benchmarks.ranks [ROUNDS]` runs `mae pretrain` with and without `--ranks` in turn, in
float32 at the same batch and micro-batches, which the one process computes side by side. It
prints images a second as logged and their ratio, then a profile of the process and of rank 0.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

from benchmarks.data import draw_images
from benchmarks.processor import print_processor
from benchmarks.spread import Spread
from mae.cli.main import main as mae
from mae.planning.hardware import cores

COUNT = cores()
SIDES = {f"one process of {COUNT} threads": 1, f"{COUNT} ranks of one thread": COUNT}
PROFILED = "--profiled"


def cases(images: Path) -> dict[str, list[str]]:
    """Return the command of each case, without the number of ranks."""
    demo = ["demo", "--data", "fashion-mnist", "--steps", "200", "--log-every-steps", "25"]
    small = ["folder", "--data", f"{images}", "--model", "vit-s/16", "--batch", "32",
             "--steps", "12", "--log-every-steps", "3"]  # fmt: skip
    return {
        f"{name}, batch {batch}": ["pretrain", *words, "--micro-batch", f"{batch // COUNT}",
                                   "--precision", "float32", "--quiet"]
        for name, words, batch in (("demo", demo, 64), ("vit-s/16", small, 32))
    }  # fmt: skip


def images_per_second(words: Sequence[str], ranks: int) -> float:
    """Run a case from its start; return the median of its log, without the first row."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name, "run")
        run(["-m", "mae", *words, "--out", f"{out}", "--ranks", f"{ranks}"])
        rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return statistics.median(row["images_per_second"] for row in rows[1:])


def profile_of(words: Sequence[str], ranks: int) -> str:
    """Run a case once more; return what `profiled` prints."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", f"{ranks}"] if ranks > 1 else []
    with tempfile.TemporaryDirectory() as name:
        program = ["-m", "benchmarks.ranks", PROFILED, *words, "--out", f"{Path(name, 'run')}"]
        return run([*launcher, *program], OMP_NUM_THREADS=f"{COUNT // ranks}")


def run(words: Sequence[str], **environment: str) -> str:
    """Run Python and return what it prints."""
    others = {name: text for name, text in os.environ.items() if name != "OMP_NUM_THREADS"}
    command, environment = [sys.executable, *words], others | environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: exit code {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def main(rounds: int) -> None:
    """Run both sides of each case in turn, and print."""
    print_processor()
    with tempfile.TemporaryDirectory() as name:
        draw_images(Path(name))
        for case, words in cases(Path(name)).items():
            rates: dict[str, list[float]] = {side: [] for side in SIDES}
            for number in range(rounds):
                for side in [*SIDES][:: -1 if number % 2 else 1]:
                    rates[side].append(images_per_second(words, SIDES[side]))
            print(f"\n{case}, float32, {COUNT} micro-batches")
            for side, each in rates.items():
                print(f"  {side}: {Spread.of(each).written(1)} images/s")
            one, several = rates.values()
            ratios = [a / b for a, b in zip(one, several, strict=True)]
            print(f"  time of the ranks over that of the process: {Spread.of(ratios).written()}")
            for side, ranks in SIDES.items():
                print(f"  profile, {side}:\n{profile_of(words, ranks)}", flush=True)


def profiled(words: list[str]) -> int:
    """Run `mae WORDS` under torch's profiler; the first process prints where its time went."""
    every = _ExperimentalConfig(profile_all_threads=True)  # those of micro-batches as well
    with profile(activities=[ProfilerActivity.CPU], experimental_config=every) as seen:
        code = mae(words)
    if os.environ.get("RANK", "0") == "0":
        events = sorted(seen.key_averages(), key=lambda each: -each.self_cpu_time_total)
        total = sum(each.self_cpu_time_total for each in events)
        for each in events[:15]:
            print(f"    {each.self_cpu_time_total / total:6.1%} {each.key}, {each.count} calls")
    return code


if __name__ == "__main__":
    if sys.argv[1:2] == [PROFILED]:
        sys.exit(profiled(sys.argv[2:]))
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
