"""Reader processes that cannot start, or end early, take one line."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mae.data.batching.readers import why_no_readers
from mae.data.sources.source import ArraySource
from tests.images import mixed_folder

ONE_LINE = (
    "mae: readers: each reader process imports this script and reached the same call again; put "
    'the call under `if __name__ == "__main__":`, or use workers=0\n'
)

PRETRAIN = """
from dataclasses import replace
import mae
from mae.recipes.catalogue import DEMO

small = replace(DEMO.model, width=24, depth=1, num_heads=2, decoder_width=16, decoder_depth=1)
recipe = replace(DEMO, model=small, steps=2, batch=4, micro_batch=None, workers=2)
run = mae.pretrain(recipe, data="images", out="run", quiet={quiet})
print("done", run.num_steps)
"""

# So many names fill the pipe through which a process is started.
FEED = """
from mae.data.decoding.decode import PixelKind
from mae.data.batching.loader import batches
from mae.data.sources.source import FolderSource
from mae.train.resolve import batch_plan
from mae.recipes.catalogue import DEMO

names = [f"an-image-of-a-large-folder-{i:06}.png" for i in range(9000)]
source = FolderSource("images", files=names)
plan = batch_plan(DEMO, source, PixelKind("uint8", 1))
next(batches(plan, start=0, stop=2, workers=2))
"""

GUARDED = """
import multiprocessing, os, signal
import numpy as np
from mae.data.decoding.decode import BadImage, PixelKind
from mae.data.batching.loader import batches
from mae.train.resolve import batch_plan
from mae.recipes.catalogue import DEMO

class Mine:
    labels, class_names = None, ()

    def __len__(self):
        return 640

    def read(self, index):
        assert multiprocessing.current_process().name == "mae reader"
        {read}

    def name(self, index):
        return str(index)

    def fingerprint(self):
        return ""

if __name__ == "__main__":
    next(batches(batch_plan(DEMO, Mine(), PixelKind("uint8", 1)), start=0, stop=2, workers=2))
"""


def ran(
    folder: Path, script: str, *, by_standard_input: bool = False
) -> subprocess.CompletedProcess[str]:
    path = folder / "script.py"
    path.write_text(script)
    return subprocess.run(
        [sys.executable, "-" if by_standard_input else str(path)],
        input=script if by_standard_input else None,
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=200,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("script", [PRETRAIN.format(quiet=True), FEED], ids=["pretrain", "feed"])
def test_a_script_without_a_guard_ends_in_one_line(tmp_path: Path, script: str) -> None:
    mixed_folder(tmp_path / "images", count=8, broken=0)

    done = ran(tmp_path, script)

    assert (done.returncode, done.stdout, done.stderr) == (1, "", ONE_LINE)


@pytest.mark.slow
def test_a_script_from_standard_input_reads_by_itself_and_says_so_once(tmp_path: Path) -> None:
    mixed_folder(tmp_path / "images", count=8, broken=0)

    done = ran(tmp_path, PRETRAIN.format(quiet=False), by_standard_input=True)

    assert (done.returncode, done.stdout) == (0, "done 2\n")
    assert done.stderr.count("workers: 0, since reader processes would have to import") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("read", "last_line"),
    [
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "mae.errors.TrainingError: readers: a reader process was killed by SIGKILL; SIGKILL "
            "means that memory ran out, as a rule: use fewer workers",
        ),
        (
            'raise BadImage("torn")',
            "mae.errors.DataError: images: none of 101 in a row could be read; last: torn",
        ),
    ],
    ids=["killed", "bad"],
)
def test_a_reader_that_fails_is_one_error_and_holds_up_no_exit(
    tmp_path: Path, read: str, last_line: str
) -> None:
    done = ran(tmp_path, GUARDED.format(read=read))

    assert done.returncode == 1 and done.stderr.splitlines()[-1] == last_line
    assert done.stderr.count("Traceback") == 1 and "torch/utils" not in done.stderr


class Mine(ArraySource):
    """As a script or a notebook would define it."""


@pytest.mark.parametrize(
    ("file", "spec", "of_main", "can"),
    [
        (__file__, None, True, True),
        ("<stdin>", None, False, False),
        ("/gone/<stdin>", None, False, False),
        ("<stdin>", ModuleSpec("a.b", None), False, True),  # python -m a.b
        (None, None, False, True),  # python -c, a notebook: nothing is imported
        (None, None, True, False),  # and so neither is its class
    ],
)
def test_readers_start_where_they_can_import_what_they_need(
    file: str | None,
    spec: ModuleSpec | None,
    of_main: bool,  # noqa: FBT001
    can: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    main = ModuleType("__main__")
    main.__spec__ = spec
    if file is not None:
        main.__file__ = file
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(Mine, "__module__", "__main__")

    source = (Mine if of_main else ArraySource)(np.zeros((5, 8, 8), np.uint8))

    assert (why_no_readers(source) is None) == can
