"""Damaged, mixed up and hostile files of a sharded checkpoint: detected, and nothing executed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata

from mae.errors import CheckpointError, TrainingError, WeightsError
from mae.parallel import dcp
from mae.runs.checkpoint import NotSaved, load_checkpoint, load_step
from mae.runs.manifest import damage
from mae.runs.sharded import is_sharded_layout
from tests.runs.hostile_metadata import IN_METADATA, IN_SHARDS, IN_STATE, MANIFESTS, sign
from tests.runs.test_checkpoint import assert_same, contents, make_state, names, save, train
from tests.runs.thread_ranks import save_halves, scaled

pytestmark = pytest.mark.slow  # many

FILES = (".metadata", "__0_0.distcp", "__1_0.distcp", "state.json", "manifest.json")
NEW = "step-00000004"


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with steps 2 and 4, and one with step 4 of another run."""
    folder: Path = tmp_path_factory.mktemp("saved")
    state = train(make_state(), 2)
    save_halves(folder / "checkpoints", state)
    save_halves(folder / "checkpoints", train(state, 2))
    save_halves(folder / "other", scaled(state, 3.0))
    return folder


@pytest.fixture
def folder(two_saved: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy that a test may spoil; nothing may appear outside of it."""
    shutil.copytree(two_saved, tmp_path / "run")

    yield tmp_path / "run" / "checkpoints"

    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def load(folder: Path) -> list[str]:
    """Load into a fresh state; return what was said."""
    state, said = make_state(seed=9), list[str]()
    assert load_checkpoint(folder, state, log=said.append) == {"run": "tiny"}
    if not said:
        assert_same(state, train(make_state(), 4))
    return said


def assert_falls_back(folder: Path) -> str:
    """Assert that the older checkpoint is loaded, and return the one line that says why."""
    state, said = make_state(seed=9), list[str]()
    load_checkpoint(folder, state, log=said.append)

    assert_same(state, train(make_state(), 2))
    assert names(folder) == ["step-00000002", "step-00000004.bad"]
    (line,) = said
    assert NEW in line and line.isprintable()
    return line


def test_halves_load_as_the_whole(folder: Path) -> None:
    assert load(folder) == []
    state = make_state(seed=9)

    load_step(folder, state, step=4)

    assert_same(state, train(make_state(), 4))


def test_torch_itself_reads_the_files(folder: Path) -> None:
    import torch.distributed.checkpoint as public

    expected = {f"model.{n}": t for n, t in train(make_state(), 4).model.state_dict().items()}
    found = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}

    with pytest.warns(UserWarning, match="torch.distributed is disabled"):
        public.load(found, checkpoint_id=folder / NEW)  # type: ignore[arg-type]

    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_plain_and_sharded_checkpoints_share_a_folder(tmp_path: Path) -> None:
    state = make_state()
    save(tmp_path, train(state, 1), keep=2)
    save_halves(tmp_path, train(state, 1), keep=2)
    save(tmp_path, train(state, 1), keep=2)
    save_halves(tmp_path, train(state, 1), keep=2)

    assert names(tmp_path) == ["step-00000003", NEW]
    assert load(tmp_path) == []
    shutil.rmtree(tmp_path / NEW)
    state = make_state(seed=9)
    load_checkpoint(tmp_path, state, log=print)
    assert_same(state, train(make_state(), 3))


def test_a_saved_step_is_not_written_again(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    assert save_halves(folder, train(make_state(), 4)) == [folder / NEW] * 2

    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


# Damage


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("left", [0, 0.5, -1])
def test_a_truncated_file_is_detected(folder: Path, name: str, left: float) -> None:
    size = (folder / NEW / name).stat().st_size
    os.truncate(folder / NEW / name, size - 1 if left < 0 else int(left * size))

    line = assert_falls_back(folder)

    assert "manifest" in line if name == "manifest.json" else f"{name} has " in line


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits_are_detected(folder: Path, name: str) -> None:
    path = folder / NEW / name
    original = path.read_bytes()
    for bit in range(3, 8 * len(original), 8 * len(original) // 12):
        content = bytearray(original)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        assert damage(folder / NEW, is_kind=is_sharded_layout), bit


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_detected(folder: Path, name: str) -> None:
    (folder / NEW / name).unlink()

    assert name in assert_falls_back(folder)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_file_of_another_step_is_detected(folder: Path, name: str) -> None:
    shutil.copy(folder / "step-00000002" / name, folder / NEW / name)

    assert_falls_back(folder)


@pytest.mark.parametrize("name", FILES[1:3])
def test_a_file_of_another_run_is_detected(folder: Path, name: str) -> None:
    shutil.copy(folder.parent / "other" / NEW / name, folder / NEW / name)

    assert f"{name} is not what was written" in assert_falls_back(folder)


def test_metadata_depends_on_the_network_and_the_ranks_alone(folder: Path) -> None:
    others = (folder / "step-00000002", folder.parent / "other" / NEW)

    expected = (folder / NEW / ".metadata").read_bytes()
    assert all((path / ".metadata").read_bytes() == expected for path in others)


def test_swapped_ranks_are_detected(folder: Path) -> None:
    first, second = folder / NEW / FILES[1], folder / NEW / FILES[2]
    first.rename(folder / "aside")
    second.rename(first)
    (folder / "aside").rename(second)

    assert FILES[1] in assert_falls_back(folder)


def test_a_file_of_one_rank_more_is_detected(folder: Path) -> None:
    shutil.copy(folder / NEW / FILES[1], folder / NEW / "__2_0.distcp")

    assert "__2_0.distcp" in assert_falls_back(folder)


def test_another_rank_verifies_the_files_that_it_reads(folder: Path) -> None:
    path = folder / NEW / FILES[2]
    path.write_bytes(path.read_bytes()[:-1] + b"!")

    with pytest.raises(CheckpointError, match="is not what was written.* in one rank, but rank 0"):
        load_step(folder, make_state(), step=4)


def test_another_model_is_refused_before_anything_changes(folder: Path) -> None:
    state = make_state(width=6)
    before = contents(state)

    with pytest.raises(WeightsError, match=r"another model: .*inner.weight: run has .*\[5, 3\]"):
        load_checkpoint(folder, state, log=print)

    assert all(torch.equal(before[name], now) for name, now in contents(state).items())


# Hostile files


def test_there_are_more_than_thirty_of_them() -> None:
    assert len(IN_METADATA | IN_SHARDS | IN_STATE | MANIFESTS) > 50


@pytest.mark.parametrize("name", IN_METADATA | IN_STATE)
def test_a_hostile_file_is_refused_in_one_line(folder: Path, name: str) -> None:
    (IN_METADATA | IN_STATE)[name](folder / NEW, folder.parent.parent / "mark")
    sign(folder / NEW)

    line = assert_falls_back(folder)

    if name in IN_METADATA:
        assert ".metadata " in line
    assert not hasattr(Metadata, "broke")


@pytest.mark.parametrize("name", IN_SHARDS)
def test_a_hostile_shard_is_refused_in_one_line(folder: Path, name: str) -> None:
    IN_SHARDS[name](folder / NEW, folder.parent.parent / "mark")
    sign(folder / NEW)

    with pytest.raises(CheckpointError, match="holds something else than tensors") as caught:
        load_checkpoint(folder, make_state(), log=print)

    assert str(caught.value).isprintable()


def test_a_manifest_refers_to_files_beside_it_alone(folder: Path) -> None:
    MANIFESTS["a-path-elsewhere"](folder / NEW, folder)

    assert "secret" in assert_falls_back(folder)


# Disks that refuse


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("[enforce fail at inline_container.cc:862] . unexpected pos 64 vs 0\nat"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_rank_that_cannot_write_costs_this_save_on_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rank: int, error: Exception
) -> None:
    real = dcp.write_shards

    def write(path: Path, plan: dcp.Plan) -> list[Any]:
        if plan.rank == rank:
            raise error
        return real(path, plan)

    state = train(make_state(), 6)
    with monkeypatch.context() as patch:
        patch.setattr(dcp, "write_shards", write)
        raised = save_halves(folder, state)

    assert all(isinstance(each, NotSaved) for each in raised)
    assert f"{raised[0]}" == f"{raised[1]}"
    assert f"step-00000006: not saved: rank {rank}: " in str(raised[0])
    assert "MB are free" in str(raised[0]) and str(raised[0]).isprintable()
    assert names(folder) == ["step-00000002", NEW]
    assert save_halves(folder, state) == [folder / "step-00000006"] * 2


@pytest.mark.parametrize("failing", range(8))
def test_any_change_to_the_disk_that_fails_on_rank_0_costs_this_save_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Fail the n-th fsync: of two shards, metadata, two JSON files, and three folders."""
    real, seen = os.fsync, [0]

    def fsync(descriptor: int) -> None:
        seen[0] += 1
        if seen[0] == failing + 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        raised = save_halves(folder, train(make_state(), 6))

    assert all("Input/output error" in str(each) for each in raised)
    assert not [name for name in names(folder) if name.startswith(".")]
    # A checkpoint whose name may not be on the disk yet is whole all the same.
    assert damage(folder / names(folder)[-1], is_kind=is_sharded_layout) == ""


def test_values_that_are_not_finite_on_one_rank_are_refused_by_all(tmp_path: Path) -> None:
    state = train(make_state(), 2)
    with torch.no_grad():
        state.model.inner.weight[-1, 0] = float("inf")  # of the second rank

    raised = save_halves(tmp_path, state)

    expected = "step 2: not saved: 1 tensors are not finite, ['inner.weight']; begin a new run"
    assert all(type(each) is TrainingError and expected in str(each) for each in raised)
    assert names(tmp_path) == []
