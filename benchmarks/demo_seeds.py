"""The demo for several pre-training seeds: `python -m benchmarks.demo_seeds FOLDER SEED ...`.

`--precision` takes one or more, which take turns. The seconds are those of this call: a finished
demo in FOLDER is shown again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.processor import PRECISIONS, print_processor
from mae.jobs.demo import demo
from mae.jobs.pretrain import pretrain
from mae.recipes.catalogue import DEMO


def main(words: Sequence[str]) -> None:
    """Run one after the other and print the seconds and the table of each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_seeds")
    parser.add_argument("folder", type=Path)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--precision", choices=["auto", *PRECISIONS], nargs="+", default=["auto"])
    asked = parser.parse_args(words)
    print_processor()
    for seed in asked.seeds:
        for precision in asked.precision:
            out = asked.folder / f"demo-{precision}-{seed}"
            config = replace(DEMO, seed=seed, precision=precision)
            began = time.perf_counter()
            pretrain(config, data="fashion-mnist", out=out, based_on="demo", quiet=True)
            trained = time.perf_counter()
            result = demo(out=out, quiet=True)  # finds the run finished, and gathers the evidence
            spent = trained - began, time.perf_counter() - began
            print(
                f"seed {seed}, {precision}: pre-training {spent[0]:.0f} s, whole {spent[1]:.0f} s"
            )
            for row in result.rows():
                print("  ".join(row))


if __name__ == "__main__":
    main(sys.argv[1:])
