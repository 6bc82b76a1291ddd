from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mae.jobs import doctor as module
from mae.jobs.doctor import Check, doctor
from mae.parallel.processes import Communicator, ProcessInfo


def found(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def test_a_ready_machine_passes_every_check_and_nothing_stays_behind(tmp_path: Path) -> None:
    checks = doctor(tmp_path)

    assert [check for check in checks if not check.ok] == []
    assert {"torch", "device", "reads JPEG", "reads WEBP", "disk"} <= {
        check.name for check in checks
    }
    assert not list(tmp_path.iterdir())


def test_a_library_that_is_missing_is_a_problem_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.LIBRARIES, "simplejpeg", "no_such_module")

    check = found(doctor(tmp_path), "simplejpeg")

    assert not check.ok
    assert check.found.startswith("No module named 'no_such_module'; reinstall it: pip install")


def test_a_full_disk_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(total=2**40, used=2**40 - 2**20, free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)

    check = found(doctor(tmp_path), "disk")

    assert check.row()[:2] == ("disk", "PROBLEM")
    assert "0.0 GiB free, expected 2; make room" in check.found


def test_a_folder_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    check = found(doctor(tmp_path / "nowhere"), "disk")

    assert not check.ok and "work in a local folder" in check.found


def test_a_decoder_that_changes_images_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mae.data.decoding import decode

    real = decode.decode
    monkeypatch.setattr(decode, "decode", lambda data, *, kind: 255 - real(data, kind=kind))

    check = found(doctor(tmp_path), "reads PNG")

    assert not check.ok and "came back changed" in check.found


@pytest.mark.parametrize(
    ("threads", "cores", "asked", "advice"),
    [
        (2, 2, None, ""),
        (8, 2, None, "more threads than cores: set OMP_NUM_THREADS=2 or --threads 2"),
        (1, 4, "1", "OMP_NUM_THREADS=1 leaves cores idle: unset it, or use --threads 4"),
        (2, 4, None, ""),  # torch's own choice: two threads a core of hardware count as one
    ],
)
def test_threads_are_held_against_the_cores_that_may_be_used(
    threads: int, cores: int, asked: str | None, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    monkeypatch.setattr("mae.planning.hardware.cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)

    check = module._threads()

    assert check.ok and check.advice == advice
    assert check.row()[1] == ("advice" if advice else "ok")


@pytest.mark.parametrize(
    ("text", "pages"),
    [
        ("always [madvise] never\n", "madvise"),
        ("[always] madvise never\n", "always"),
        ("always madvise [never]\n", "never"),
    ],
)
def test_huge_pages_are_read_as_the_system_sets_them(text: str, pages: str, tmp_path: Path) -> None:
    (tmp_path / "enabled").write_text(text)

    assert module.huge_pages(tmp_path / "enabled") == pages
    assert module.huge_pages(tmp_path / "gone") == "never"


def test_an_allocator_that_was_preloaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libother.so:/usr/lib/libjemalloc.so.2")

    check = module._allocator()

    assert check.ok and check.found.startswith("jemalloc; huge pages: ") and not check.advice


def test_little_shared_memory_is_advice_on_docker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=2**26, used=0, free=2**26)  # what docker gives
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)

    check = module._shared_memory(tmp_path)

    assert check.row()[:2] == ("shared memory", "advice")
    assert "0.1 GiB free" in check.found and "docker run --shm-size" in check.advice


def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    monkeypatch.setattr("mae.planning.hardware.cores", lambda: 8)
    monkeypatch.setattr(module, "this_process", lambda: ProcessInfo(0, 2, 0, 2))

    assert module._threads() == Check("threads", ok=True, found="4 for 4 cores")


@pytest.mark.slow
def test_two_ranks_that_work_together_pass_every_check(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "mae", "doctor", "--ranks", "2", "--json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    checks = {each["name"]: each for each in json.loads(ended.stdout)["checks"]}
    assert ended.returncode == 0 and ended.stderr == ""
    assert [*checks][-6:] == "versions ranks all-reduce broadcast checkpoint clocks".split()
    assert all(each["ok"] for each in checks.values())
    assert checks["ranks"]["found"].startswith("2 on ")
    assert not list(tmp_path.iterdir())


class Gathering(Communicator):
    """Rank 0 of two; the other one is made of what this one gives."""

    def __init__(self, other: Callable[[Any], object]) -> None:
        super().__init__(ProcessInfo(0, 2, 0, 2))
        self.other = other

    def all_gather(self, mine: Any) -> list[Any]:
        return [mine, self.other(mine)]


def test_the_first_check_that_fails_is_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.nccl.version", lambda: (2, 27, 3))

    versions, ranks = module._rank_checks(Gathering(lambda mine: mine), tmp_path)

    assert versions.ok and not ranks.ok
    assert ranks.found.startswith("2 ranks on ") and "which has 1 GPUs; start as" in ranks.found


def test_clocks_that_differ_are_a_problem() -> None:
    ahead = Gathering(lambda mine: None if mine is None else mine + 3600)

    with pytest.raises(ValueError, match=r"the clocks of the ranks differ by 3600\.0 s"):
        module._clocks(ahead)


def test_a_checkpoint_that_another_rank_does_not_see_is_a_problem(tmp_path: Path) -> None:
    def blind(mine: Any) -> object:
        return ("rank 1 does not see what rank 0 saved", 0.0) if isinstance(mine, tuple) else mine

    with pytest.raises(ValueError, match="rank 1 does not see what rank 0 saved"):
        module._checkpoint(Gathering(blind), tmp_path)

    assert not list(tmp_path.iterdir())


def test_values_that_differ_after_a_load_are_a_problem(tmp_path: Path) -> None:
    def other(mine: Any) -> object:
        return (mine[0], mine[1] + 1) if isinstance(mine, tuple) else mine

    with pytest.raises(ValueError, match="ranks loaded other values than rank 0 saved"):
        module._checkpoint(Gathering(other), tmp_path)


def test_bytes_that_change_on_the_way_are_a_problem() -> None:
    with pytest.raises(ValueError, match="ranks got other bytes"):
        module._broadcast(Gathering(lambda mine: mine if isinstance(mine, bytes) else "x"))
