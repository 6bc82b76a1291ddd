import errno
import json
import os
import random
import resource
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mae.errors import CheckpointError, TrainingError, WeightsError
from mae.runs import checkpoint
from mae.runs.checkpoint import NotSaved, latest_checkpoint, load_checkpoint, save_checkpoint
from mae.runs.state import TrainState

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


class Tiny(nn.Module):
    """A layer of each kind: decayed, norm with buffers, a frozen table, one without a gradient."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.inner = nn.Linear(3, width)
        self.norm = nn.BatchNorm1d(width)
        self.table = nn.Parameter(torch.zeros(2, width), requires_grad=False)
        self.unused = nn.Parameter(torch.zeros(4))

    def forward(self, values):
        return self.norm(self.inner(values) + self.table.sum(dim=0)).square().mean()


def make_state(seed: int = 0, width: int = 5) -> TrainState:
    model = Tiny(width)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    trained = [p for p in model.parameters() if p.requires_grad]
    # Groups in another order than the model's: names, not positions, must decide.
    groups = [{"params": trained[2:], "weight_decay": 0.0}, {"params": trained[:2]}]
    return TrainState(model=model, optimizer=torch.optim.AdamW(groups, lr=0.05))


def train(state: TrainState, steps: int) -> TrainState:
    for _ in range(steps):
        generator = torch.Generator().manual_seed(100 + state.step)
        state.optimizer.zero_grad()
        state.model(torch.randn(7, 3, generator=generator)).backward()
        state.optimizer.step()
        state.step += 1
    return state


def contents(state: TrainState) -> dict[str, torch.Tensor]:
    tensors = {name: t.clone() for name, t in state.model.state_dict().items()}
    for name, parameter in state.model.named_parameters():
        for kind, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"{kind}.{name}"] = value.clone()
    return tensors


def assert_same(left: TrainState, right: TrainState) -> None:
    a, b = contents(left), contents(right)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (left.step, left.bad_in_a_row) == (right.step, right.bad_in_a_row)


def save(folder: Path, state: TrainState, *, keep: int = 3) -> Path:
    return save_checkpoint(folder, state, extra={"run": "tiny"}, keep=keep)


def load(folder: Path) -> tuple[TrainState, list[str]]:
    state, said = make_state(seed=9), []
    assert load_checkpoint(folder, state, log=said.append) == {"run": "tiny"}
    return state, said


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory):
    """A folder with steps 2 and 4."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    state = train(make_state(), 2)
    save(folder, state)
    save(folder, train(state, 2))
    return folder


@pytest.fixture
def folder(two_saved, tmp_path):
    """A copy of them that a test may spoil."""
    return Path(shutil.copytree(two_saved, tmp_path / "checkpoints"))


def assert_falls_back(folder: Path, *, because: str) -> None:
    state, said = load(folder)

    assert_same(state, train(make_state(), 2))
    assert len(said) == 1 and because in said[0], said
    assert "step-00000004" in said[0] and "\n" not in said[0]
    assert names(folder) == ["step-00000002", "step-00000004.bad"]


# What is saved comes back


def test_a_saved_and_loaded_run_continues_bitwise(tmp_path):
    straight = train(make_state(), 20)

    half = train(make_state(), 10)
    half.bad_in_a_row = 2
    save(tmp_path / "checkpoints", half)
    resumed, said = load(tmp_path / "checkpoints")

    assert_same(resumed, half)
    resumed.bad_in_a_row = 0
    assert_same(train(resumed, 10), straight)
    assert said == []


def test_a_state_without_moments_comes_back(tmp_path):
    save(tmp_path / "checkpoints", make_state())

    state, _ = load(tmp_path / "checkpoints")

    assert_same(state, make_state())


def test_moments_of_the_state_loaded_into_are_replaced(tmp_path):
    save(tmp_path / "checkpoints", make_state())
    state = train(make_state(), 3)

    load_checkpoint(tmp_path / "checkpoints", state, log=print)

    assert not any(state.optimizer.state.values())


def test_loaded_tensors_are_independent_of_the_files(folder):
    state, _ = load(folder)
    before = contents(state)

    for file in (folder / "step-00000004").iterdir():
        file.write_bytes(b"\xff" * file.stat().st_size)

    assert all(torch.equal(before[name], now) for name, now in contents(state).items())


def test_optimiser_files_are_keyed_by_parameter_name(folder):
    state = train(make_state(), 4)
    moments = load_file(folder / "step-00000004" / "optimizer.safetensors")

    trained = {"inner.weight", "inner.bias", "norm.weight", "norm.bias"}
    kinds = {"step", "exp_avg", "exp_avg_sq"}
    assert moments.keys() == {f"{kind}.{name}" for kind in kinds for name in trained}
    weight = state.optimizer.state[state.model.inner.weight]
    assert torch.equal(moments["exp_avg.inner.weight"], weight["exp_avg"])
    assert moments["step.inner.weight"] == 4


def test_model_file_holds_parameters_and_buffers_by_name(folder):
    model = load_file(folder / "step-00000004" / "model.safetensors")

    wanted = train(make_state(), 4).model.state_dict()
    assert model.keys() == wanted.keys()
    assert all(torch.equal(model[name], wanted[name]) for name in wanted)
    assert {"table", "norm.running_mean", "norm.num_batches_tracked"} <= model.keys()


def test_state_file_names_the_versions(folder):
    record = json.loads((folder / "step-00000004" / "state.json").read_bytes())

    assert record["step"] == 4
    assert {"python", "torch", "mae-vision"} <= record["versions"].keys()


def test_no_checkpoint_leaves_the_state_as_it_was(tmp_path):
    state = train(make_state(), 2)

    extra = load_checkpoint(tmp_path / "nowhere", state, log=print)

    assert extra is None
    assert_same(state, train(make_state(), 2))
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_a_checkpoint_is_never_written_into_again(folder):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    state, _ = load(folder)

    assert save(folder, state) == folder / "step-00000004"

    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = save(tmp_path / "checkpoints", make_state())
    finally:
        os.umask(before)

    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o640}
    assert stat.S_IMODE(path.stat().st_mode) == 0o750


def test_everything_is_on_disk_before_the_rename_that_shows_it(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, os.rename

    def recording_fsync(descriptor):
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def recording_rename(source, target):
        events.append(f"rename to {Path(target).name}")
        rename(source, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to see what is synced")
    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "rename", recording_rename)

    save(tmp_path / "checkpoints", make_state())

    assert [event.partition("step-")[0] + "…" * ("step-" in event) for event in events] == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "manifest.json",
        ".tmp-…",
        "rename to …",
        "checkpoints",
        tmp_path.name,
    ]


# Retention and litter


def test_the_last_k_are_kept(tmp_path):
    state = make_state()
    for _ in range(5):
        save(tmp_path, train(state, 1), keep=3)

    assert names(tmp_path) == ["step-00000003", "step-00000004", "step-00000005"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000005"


def test_steps_are_ordered_as_numbers_beyond_eight_digits(tmp_path):
    state = make_state()
    for step in (99_999_998, 99_999_999, 100_000_000):
        state.step = step
        save(tmp_path, state, keep=2)

    assert names(tmp_path) == ["step-100000000", "step-99999999"]
    assert load(tmp_path)[0].step == 100_000_000


def test_a_deletion_that_fails_costs_nothing_and_is_tried_again(tmp_path, monkeypatch):
    state = make_state()
    save(tmp_path, train(state, 1), keep=2)
    save(tmp_path, train(state, 1), keep=2)
    rename = os.rename

    def failing(source, target):
        if ".del-" in str(target):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", failing)
        save(tmp_path, train(state, 1), keep=2)
        assert len(names(tmp_path)) == 3

    save(tmp_path, train(state, 1), keep=2)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_litter_is_swept_at_start_and_nothing_else(folder):
    for name in (".tmp-step-00000006-0a", ".del-step-00000001-0b"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(b"part")
    (folder / ".tmpAbC123").write_bytes(b"what safetensors leaves")
    (folder / "step-00000003.bad").mkdir()
    (folder / "notes.txt").write_text("mine")

    load(folder)

    kept = ["notes.txt", "step-00000002", "step-00000003.bad", "step-00000004"]
    assert names(folder) == kept


def test_a_failing_sweep_is_no_reason_to_stop(folder, monkeypatch):
    (folder / ".tmpAbC123").write_bytes(b"litter")

    def refuse(self):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)

    assert load(folder)[0].step == 4


# Damage


@pytest.mark.parametrize("share", [0, 0.01, 0.25, 0.5, 0.99, -1])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_detected(folder, name, share):
    file = folder / "step-00000004" / name
    size = file.stat().st_size
    os.truncate(file, size - 1 if share == -1 else int(size * share))

    assert_falls_back(folder, because=name if name == "manifest.json" else f"{name} has ")


@pytest.mark.slow
def test_every_flipped_bit_is_detected(folder, tmp_path):
    draws, spoiled = random.Random(0), tmp_path / "spoiled"
    sizes = {name: (folder / "step-00000004" / name).stat().st_size for name in FILES}
    for turn in range(200):
        shutil.copytree(folder, spoiled)
        name = FILES[turn % 4]
        bit = draws.randrange(8 * sizes[name])
        file = spoiled / "step-00000004" / name
        content = bytearray(file.read_bytes())
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)

        state, said = load(spoiled)

        assert state.step == 2 and len(said) == 1, (name, bit)
        shutil.rmtree(spoiled)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_detected(folder, name):
    (folder / "step-00000004" / name).unlink()

    assert_falls_back(folder, because=name)


def test_an_extra_file_is_detected(folder):
    (folder / "step-00000004" / "rank1.safetensors").write_bytes(b"of another time")

    assert_falls_back(folder, because="rank1.safetensors")


def test_a_hidden_file_of_the_desktop_is_no_damage(folder):
    (folder / "step-00000004" / ".DS_Store").write_bytes(b"icons")

    state, said = load(folder)

    assert state.step == 4 and said == []


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_step_is_detected(folder, name):
    shutil.copy(folder / "step-00000002" / name, folder / "step-00000004" / name)

    state, said = load(folder)

    assert state.step == 2 and len(said) == 1


def test_two_swapped_files_are_detected(folder):
    path = folder / "step-00000004"
    (path / FILES[0]).rename(path / "aside")
    (path / FILES[1]).rename(path / FILES[0])
    (path / "aside").rename(path / FILES[1])

    assert_falls_back(folder, because="model.safetensors")


def test_a_checkpoint_under_the_name_of_another_step_is_detected(folder):
    shutil.rmtree(folder / "step-00000004")
    shutil.copytree(folder / "step-00000002", folder / "step-00000004")

    assert_falls_back(folder, because="is of step 2")


@pytest.mark.parametrize("content", [b"[]", b"{}", b"null", b'{"a": 1}', b"\xff\x00"])
def test_a_manifest_that_is_none_is_detected(folder, content):
    (folder / "step-00000004" / "manifest.json").write_bytes(content)

    assert_falls_back(folder, because="manifest")


def test_all_damaged_is_an_error_with_each_reason_and_changes_nothing(folder):
    (folder / "step-00000002" / "state.json").unlink()
    os.truncate(folder / "step-00000004" / "model.safetensors", 10)
    before = sorted(folder.rglob("*"))
    state = train(make_state(), 1)

    for _ in range(2):  # a second start must not begin anew either
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(folder, state, log=print)

        message = str(caught.value)
        assert "no intact checkpoint" in message and "\n" not in message
        assert "step-00000002: holds" in message and "step-00000004: model.saf" in message
    assert caught.value.exit_code == 1
    assert sorted(folder.rglob("*")) == before
    assert_same(state, train(make_state(), 1))


def test_damage_at_the_same_step_again_gets_a_name_of_its_own(folder):
    (folder / "step-00000004.bad").mkdir()
    (folder / "step-00000004" / "state.json").unlink()

    load(folder)

    assert len([name for name in names(folder) if name.endswith(".bad")]) == 2


def test_another_model_is_refused_by_name_and_nothing_changes(folder):
    state = make_state(width=6)
    before = contents(state)

    with pytest.raises(WeightsError, match=r"norm.bias: run has .*\[5\], asked .*\[6\]") as caught:
        load_checkpoint(folder, state, log=print)

    assert "step-00000004" in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(before[name], now) for name, now in contents(state).items())
    assert names(folder) == ["step-00000002", "step-00000004"]


def test_missing_and_unexpected_tensors_are_named(folder):
    state = make_state()
    state.model.more = nn.Parameter(torch.zeros(3))
    del state.model.table

    with pytest.raises(WeightsError, match=r"table: .*asked nothing; more: run has nothing"):
        load_checkpoint(folder, state, log=print)


def test_another_dtype_is_refused(folder):
    state = make_state()
    state.model.double()

    with pytest.raises(WeightsError, match="float32 .*asked torch.float64"):
        load_checkpoint(folder, state, log=print)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["inner.weight", "norm.running_var"])
def test_a_state_that_is_not_finite_is_never_saved(tmp_path, name, value):
    state = make_state()
    state.model.state_dict()[name].flatten()[1] = value

    with pytest.raises(TrainingError, match=name):
        save(tmp_path, state)

    assert names(tmp_path) == []


# Full and failing disks


def test_a_full_disk_is_seen_before_anything_is_written(folder, monkeypatch):
    state, _ = load(folder)
    usage = shutil.disk_usage(folder)._replace(free=300_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(checkpoint, "_write", None)  # would fail if it were called

    with pytest.raises(NotSaved, match=r"no space left: needs 1\.0 MB, 0\.3 MB are free") as caught:
        save(folder, train(state, 1))

    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
    assert names(folder) == ["step-00000002", "step-00000004"]


def test_a_disk_of_unknown_size_is_written_to(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(total=0, used=0, free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    assert save(tmp_path, make_state()).is_dir()


@pytest.mark.parametrize("failing_sync", range(1, 9))
def test_a_disk_that_fills_during_the_save_costs_only_this_save(folder, monkeypatch, failing_sync):
    state, _ = load(folder)
    fsync, syncs = os.fsync, []

    def full(descriptor):
        syncs.append(descriptor)
        if len(syncs) == failing_sync:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    train(state, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        if failing_sync < 8:
            with pytest.raises(NotSaved, match="No space left on device"):
                save(folder, state)
        else:
            save(folder, state)  # there are seven

    assert not [name for name in names(folder) if name.startswith(".")]
    assert load(folder)[0].step >= 4
    save(folder, train(state, 1))
    assert load(folder)[0].step == 6


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_write_that_the_system_refuses_leaves_nothing(folder, share):
    state, _ = load(folder)
    limit = int(share * (folder / "step-00000004" / "optimizer.safetensors").stat().st_size)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        with pytest.raises(NotSaved, match="File too large"):
            save(folder, train(state, 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)

    assert names(folder) == ["step-00000002", "step-00000004"]
    assert load(folder)[0].step == 4


@pytest.mark.parametrize("reason", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path, monkeypatch, reason):
    def refuse(*args, **kwargs):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "mkdir", refuse)

    with pytest.raises(NotSaved, match=os.strerror(reason)) as caught:
        save(tmp_path / "run" / "checkpoints", make_state())

    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_read_only_folder_is_one_line(folder):
    state, _ = load(folder)
    folder.chmod(0o555)
    try:
        with pytest.raises(NotSaved, match="Permission denied"):
            save(folder, train(state, 1))
    finally:
        folder.chmod(0o755)

    assert load(folder)[0].step == 4


def test_a_checkpoint_one_may_not_read_is_no_damage(folder, monkeypatch):
    def forbidden(self):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", forbidden)

    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(folder, make_state(), log=print)

    assert names(folder) == ["step-00000002", "step-00000004"]


# kill -9


def kill_rounds(folder: Path, *, rounds: int, seed: int) -> dict[str, int]:
    script = Path(__file__).with_name("killed_saver.py")
    finished = subprocess.run(
        [sys.executable, str(script), str(folder), str(rounds), str(seed)],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@pytest.mark.slow
def test_a_kill_inside_a_save_loses_nothing_acknowledged(tmp_path):
    counts = kill_rounds(tmp_path / "checkpoints", rounds=12, seed=0)

    assert counts["rounds"] == 12
    assert counts["last_step"] >= 12


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing_acknowledged(tmp_path):
    counts = kill_rounds(tmp_path / "checkpoints", rounds=100, seed=1)

    assert counts["inside_a_save"] >= 30
