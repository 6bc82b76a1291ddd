"""Checkpoints that ranks write together: any number of ranks reads them, nothing is executed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # real processes


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """A folder with a sharded and a plain checkpoint, and digests of what ranks loaded of them."""
    folder = tmp_path_factory.mktemp("saved")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.runs.sharded_states", str(folder)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["sharded", "plain"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_any_number_of_ranks_loads_what_two_saved(
    saved: tuple[Path, dict[str, list[str]]], kind: str, count: int
) -> None:
    _, digests = saved
    (expected,) = set(digests[f"{kind} saved"])

    loaded = {
        into: digests[f"{kind} into {into} on {count}"]
        for into in ("sharded", "plain")
        if count > 1 or into == "plain"  # one rank holds the whole model
    }

    assert loaded == {into: [expected] * count for into in loaded}


def test_two_ranks_write_a_file_each_and_one_manifest(
    saved: tuple[Path, dict[str, list[str]]],
) -> None:
    path = saved[0] / "sharded" / "step-00000003"

    assert {p.name for p in path.iterdir()} == {
        ".metadata", "__0_0.distcp", "__1_0.distcp", "state.json", "manifest.json"
    }  # fmt: skip
    manifest = json.loads((path / "manifest.json").read_bytes())
    assert list(manifest) == [".metadata", "__0_0.distcp", "__1_0.distcp", "state.json"]
    assert json.loads((path / "state.json").read_bytes())["step"] == 3
