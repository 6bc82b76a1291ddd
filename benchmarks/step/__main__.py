"""`python -m benchmarks.step [--precision float32] [--pairs N] [--json FILE]`, in `make bench`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.processor import PRECISIONS, precisions_of, print_processor
from benchmarks.step.measuring import Measured, Sized, measure, peak_bytes
from benchmarks.step.sides import NAMES, PEERS, SETTINGS, SIZES


def main(words: Sequence[str]) -> None:
    """Measure and print, size after size."""
    asked = _arguments(words)
    sizes = asked.sizes.split(",")
    if asked.alone is not None:
        print(peak_bytes(asked.alone, sizes[0], asked.precision))
        return
    values = {"processor": print_processor(), "settings": SETTINGS, "sizes": []}
    print("\n".join(f"{side}: {what}" for side, what in SETTINGS.items()))
    precisions = precisions_of(asked.precision, emulated=asked.emulated)
    for size in sizes if precisions else ():
        found = measure(size, pairs=asked.pairs, precisions=precisions)
        print("\n".join(lines(found)), flush=True)
        values["sizes"].append(found.values())
        if asked.json is not None:
            asked.json.parent.mkdir(parents=True, exist_ok=True)
            asked.json.write_text(json.dumps(values, indent=1))


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--precision", choices=[*PRECISIONS, "both"], default="both")
    parser.add_argument("--emulated", action="store_true", help="bf16 even where it is emulated")
    parser.add_argument("--pairs", type=int, default=10, help="rounds of all sides; 10")
    parser.add_argument("--sizes", default=",".join(SIZES), help=f"of {', '.join(SIZES)}")
    parser.add_argument("--json", type=Path, help="the same for machines")
    parser.add_argument("--alone", choices=NAMES, help="only this side's memory, in bytes")
    return parser.parse_args(words)


def lines(found: Sized) -> Iterator[str]:
    """Write the figures of a size."""
    yield f"\n{found.size}, batch {found.batch}"
    for precision, measured in found.precisions.items():
        yield from _lines(precision, measured)
    for peer, ratio in found.by_default.items() if found.default != "float32" else ():
        yield f"  by default: {peer} in float32 over ours in {found.default} {ratio.written()}"


def _lines(precision: str, found: Measured) -> Iterator[str]:
    yield f"  {precision}: ours {found.rate.written(1)} images/s"
    for peer in PEERS:
        yield f"    {peer} over ours {found.whole[peer].written()}"
    shares = ", ".join(f"{name} {share:.1%}" for name, share in found.update_shares.items())
    yield f"    optimizer's share of a step: {shares}"
    products = ", ".join(f"{name} {rate:.0f}" for name, rate in found.product_gflops.items())
    yield (
        f"    ours {found.gflops.written(0)} GFLOP/s, {found.share_of_product:.0%} of the best "
        f"square product ({products})"
    )
    for name in NAMES:
        yield (
            f"    {name}: {found.kept_bytes[name] / 2**20:.1f} MiB kept an image, "
            f"{found.peak_bytes[name] / 2**20:,.0f} MiB at the peak"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
