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
    assert check.found.startswith("No module named 'no_such_module'; install it anew: pip install")


def test_a_full_disk_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(total=2**40, used=2**40 - 2**20, free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)

    check = found(doctor(tmp_path), "disk")

    assert check.row()[:2] == ("disk", "PROBLEM")
    assert "0.0 GiB free, expected 2; make room" in check.found


def test_a_folder_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    check = found(doctor(tmp_path / "nowhere"), "disk")

    assert not check.ok and "work in a local folder" in check.found


def test_a_decoder_that_changes_pictures_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mae.data import decode

    real = decode.decode
    monkeypatch.setattr(decode, "decode", lambda data, *, kind: 255 - real(data, kind=kind))

    check = found(doctor(tmp_path), "reads PNG")

    assert not check.ok and "came back as another" in check.found
