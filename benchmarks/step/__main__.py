"""`python -m benchmarks.step [--pairs N] [--sizes NAMES] [--json FILE]`, part of `make bench`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.step.measuring import Sized, measure, peak_bytes
from benchmarks.step.sides import NAMES, PEERS, SIZES
from mae.planning.hardware import cores


def main(words: Sequence[str]) -> None:
    """Measure and print, size after size."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--pairs", type=int, default=10, help="rounds of all sides; 10")
    parser.add_argument("--sizes", default=",".join(SIZES), help=f"of {', '.join(SIZES)}")
    parser.add_argument("--json", type=Path, help="the same for machines")
    parser.add_argument("--alone", choices=NAMES, help="only this side's memory, in bytes")
    asked = parser.parse_args(words)
    sizes = asked.sizes.split(",")
    if asked.alone is not None:
        print(peak_bytes(asked.alone, sizes[0]))
        return
    print(f"cores {cores()}, threads {torch.get_num_threads()}, torch {torch.__version__}")
    found = list[Sized]()
    for size in sizes:
        found.append(measure(size, pairs=asked.pairs))
        print("\n".join(lines(found[-1])), flush=True)
        if asked.json is not None:
            asked.json.parent.mkdir(parents=True, exist_ok=True)
            asked.json.write_text(json.dumps([each._asdict() for each in found], indent=1))


def lines(found: Sized) -> Iterator[str]:
    """Say what came out at a size."""
    yield f"\n{found.size}, batch {found.batch}: {found.rate.written(1)} images/s"
    for peer in PEERS:
        yield (
            f"  {peer}: its step over ours {found.whole[peer].written()}; forward and backward "
            f"{found.model[peer].written()}; with our optimiser "
            f"{found.ours_updating[peer].written()}"
        )
    yield f"  optimiser's share of our step {found.update_share:.1%}"
    for name, peak in found.peak_gflops.items():
        share = found.gflops.median / peak
        yield f"  {found.gflops.written(0)} GFLOP/s, {share:.0%} of {peak:.0f} ({name})"
    for name in NAMES:
        yield (
            f"  {name}: {found.kept_bytes[name] / 2**20:.1f} MiB kept an image, "
            f"{found.peak_bytes[name] / 2**20:,.0f} MiB at the peak"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
