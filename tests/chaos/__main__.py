"""Run the fault tests and print the score: `python -m tests.chaos [--only NAMES] [--out FOLDER]`.

Each finished test leaves its result in the folder, so a stopped run continues where it was;
results of other source code are not used. Exit code 1 if any trial fails.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.chaos.catalogue import TESTS
from tests.chaos.harness import is_passed, run_all, score_of, write_table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--only", help="names of tests, by commas, to run again", default="")
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"))
    given = parser.parse_args()
    names = [name for name in given.only.split(",") if name]
    if unknown := sorted(set(names) - {test.name for test in TESTS}):
        parser.error(f"no test {', '.join(unknown)}; there are {', '.join(t.name for t in TESTS)}")
    tests = [test for test in TESTS if not names or test.name in names]
    out = given.out.resolve()  # the kernel names files by absolute paths, see `WriteOrder`
    results = run_all(tests, out, again=bool(names))
    if not names:
        write_table(results, out / "chaos.json")
    print(score_of(results))
    return int(not all(map(is_passed, results)))


if __name__ == "__main__":
    sys.exit(main())
