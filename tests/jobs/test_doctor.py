from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from mae.jobs import doctor as module
from mae.jobs.doctor import Check, doctor


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
