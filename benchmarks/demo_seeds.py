"""The demo for several pre-training seeds: `python -m benchmarks.demo_seeds FOLDER SEED ...`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from mae.jobs.demo import demo
from mae.jobs.pretrain import pretrain
from mae.recipes.catalogue import DEMO


def main(folder: Path, seeds: list[int]) -> None:
    """Run one after the other and print each table."""
    for seed in seeds:
        out = folder / f"demo-{seed}"
        pretrain(replace(DEMO, seed=seed), data="fashion-mnist", out=out, based_on="demo")
        result = demo(out=out)  # finds the run finished, and gathers the evidence
        print(f"seed {seed}")
        for row in result.rows():
            print("  ".join(row))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(seed) for seed in sys.argv[2:]])
