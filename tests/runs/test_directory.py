import dataclasses
import errno
import json
import os
import subprocess
from pathlib import Path

import pytest

from mae.atomic import remove_stale_temporaries, write_json_atomic
from mae.config.run import FitConfig, OptimConfig, PretrainConfig
from mae.errors import ConfigError
from mae.parallel.agreement import write_marker
from mae.runs.directory import RunDir, git_state, make_run_folder, open_run, read_record, versions


def record(config=None, *, fingerprint="f00d", count=1000, **more):
    return {
        "config": dataclasses.asdict(config or PretrainConfig()),
        "data": {"fingerprint": fingerprint, "count": count},
        "num_steps": 40,
        **more,
    }


def refusal(path, **arguments):
    before = path.joinpath("run.json").read_bytes()

    with pytest.raises(ConfigError) as caught:
        open_run(path, record=record(**arguments))

    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert path.joinpath("run.json").read_bytes() == before
    return str(caught.value)


# Beginning and going on


def test_a_new_run_gets_its_record(tmp_path):
    opened = open_run(tmp_path / "a" / "run", record=record(seed=3))

    assert not opened.resumed
    assert opened.record == read_record(tmp_path / "a" / "run")
    assert (opened.record["num_steps"], opened.record["seed"]) == (40, 3)
    assert RunDir(tmp_path / "a" / "run").record.exists()


def test_the_same_configuration_goes_on_with_the_first_record(tmp_path):
    open_run(tmp_path, record=record(command=["first"]))

    opened = open_run(tmp_path, record=record(num_steps=77, command=["second"]) | {"threads": 9})

    assert opened.resumed
    assert opened.record["num_steps"] == 40
    assert opened.record["command"] == ["first"]


def test_what_may_change_on_resume_may_change_and_is_recorded(tmp_path):
    open_run(tmp_path, record=record(PretrainConfig()))
    changed = PretrainConfig(
        workers=1,
        device="cpu",
        threads=2,
        micro_batch=8,
        checkpoint_every=2,
        compile=True,
        strategy="fsdp",
        log_every_steps=7,
        save_every_steps=9,
        async_save=True,
        keep=5,
        keep_checkpoints=True,
    )

    opened = open_run(tmp_path, record=record(changed))

    assert opened.resumed
    assert opened.record["config"]["micro_batch"] == 8
    assert read_record(tmp_path) == opened.record


@pytest.mark.parametrize(
    "name",
    sorted(
        {field.name for field in dataclasses.fields(FitConfig)}
        - {"workers", "device", "threads", "micro_batch", "checkpoint_every", "compile", "strategy"}
        - {"log_every_steps", "save_every_steps", "async_save", "keep", "keep_checkpoints", "optim"}
    ),
)
def test_every_other_field_of_a_fit_is_compared(tmp_path, name):
    open_run(tmp_path, record=record())
    asked = record()
    if isinstance(asked["config"][name], dict):
        within = next(iter(asked["config"][name]))
        asked["config"][name][within], name = "other", f"{name}.{within}"
    else:
        asked["config"][name] = "other"

    with pytest.raises(ConfigError, match=f"{name}: run has .*, asked other"):
        open_run(tmp_path, record=asked)


def test_a_field_that_an_older_record_lacks_stands_for_its_default(tmp_path):
    older, now = record(), record()
    del older["config"]["augment"]["crop_clip"]
    open_run(tmp_path, record=older)
    defaults = {"augment": {"crop_clip": False, "flip": 0.9}}

    changed = record()
    changed["config"]["augment"]["crop_clip"] = True
    with pytest.raises(ConfigError, match="augment.crop_clip: run has False, asked True;"):
        open_run(tmp_path, record=changed, defaults=defaults)
    opened = open_run(tmp_path, record=now, defaults=defaults)

    assert opened.resumed and read_record(tmp_path)["config"] == json.loads(
        json.dumps(now["config"])
    )


def test_another_configuration_is_refused_field_by_field(tmp_path):
    open_run(tmp_path, record=record(PretrainConfig(optim=OptimConfig(lr=0.1))))

    message = refusal(tmp_path, config=PretrainConfig(optim=OptimConfig(lr=0.2), batch=64))

    assert "batch: run has 4096, asked 64; optim.lr: run has 0.1, asked 0.2" in message
    assert "--out" in message


def test_at_most_five_differences_are_named(tmp_path):
    open_run(tmp_path, record=record())
    asked = PretrainConfig(
        epochs=1,
        batch=2,
        seed=3,
        precision="bf16",
        optim=OptimConfig(lr=1, min_lr=0.1, eps=0.1),
        max_bad=0.5,
    )

    message = refusal(tmp_path, config=asked)

    assert message.count("run has") == 5
    assert "and 3 more" in message


def test_a_field_the_run_does_not_have_is_a_difference(tmp_path):
    old = record()
    del old["config"]["max_bad"]
    open_run(tmp_path, record=old)

    assert "max_bad: run has nothing, asked 0.1" in refusal(tmp_path)


def test_a_finished_run_points_to_init(tmp_path):
    open_run(tmp_path, record=record(finished=True))

    assert f"finished; to train on, use --init {tmp_path}" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (1003, "3 files added, 1,003 images, the run has 1,000"),
        (990, "10 files removed, 990 images, the run has 1,000"),
        (1000, "other names or sizes, 1,000 images"),
    ],
)
def test_a_changed_data_folder_is_refused_with_the_counts(tmp_path, count, words):
    open_run(tmp_path, record=record())

    assert words in refusal(tmp_path, fingerprint="beef", count=count)


def test_changed_data_is_named_before_the_statistics_that_follow_from_it(tmp_path):
    open_run(tmp_path, record=record())

    message = refusal(tmp_path, config=PretrainConfig(seed=1), fingerprint="beef", count=1001)

    assert "1 files added" in message and "seed" not in message


# Whose folder


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    for name in ("thesis.tex", "lock", "photos"):
        (tmp_path / name).touch()

    for call in (make_run_folder, lambda path: open_run(path, record=record())):
        with pytest.raises(ConfigError, match="holds photos; thesis.tex, no run.json"):
            call(tmp_path)

    assert {p.name for p in tmp_path.iterdir()} == {"thesis.tex", "lock", "photos"}


def test_what_a_start_left_that_died_early_is_taken_over(tmp_path):
    (tmp_path / "lock").write_text("host 1\n")
    (tmp_path / ".tmp-run.json-0a1b2c3d").write_text("{")

    assert not open_run(tmp_path, record=record()).resumed
    assert {p.name for p in tmp_path.iterdir()} == {"lock", "run.json"}


def test_the_marker_of_another_start_on_several_ranks_is_no_foreign_file(tmp_path):
    write_marker(tmp_path)  # by a job that starts at the same time, or was killed meanwhile

    assert not open_run(tmp_path, record=record()).resumed


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path):
    (tmp_path / "run").write_text("a file")

    with pytest.raises(ConfigError, match="cannot be a run folder: File exists") as caught:
        make_run_folder(tmp_path / "run")

    assert "--out" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_on_the_way_to_the_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("a file")

    with pytest.raises(ConfigError, match="Not a directory"):
        make_run_folder(tmp_path / "file" / "run")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"config": 3, "data": {}}'])
def test_a_damaged_record_is_refused_and_kept(tmp_path, content):
    (tmp_path / "run.json").write_text(content)

    with pytest.raises(ConfigError, match="not the record of a run"):
        open_run(tmp_path, record=record())

    assert (tmp_path / "run.json").read_text() == content


def test_a_folder_without_a_run_has_no_record(tmp_path):
    (tmp_path / "file").touch()

    assert read_record(tmp_path) is None
    assert read_record(tmp_path / "file" / "run") is None


def test_a_record_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "run.json").mkdir()

    with pytest.raises(ConfigError, match="run.json: Is a directory; repair it, or choose"):
        read_record(tmp_path)


def test_a_run_of_version_0_1_keeps_its_folder_of_images(tmp_path):
    assert RunDir(tmp_path).images == tmp_path / "images"

    (tmp_path / "pictures").mkdir()

    assert RunDir(tmp_path).images == tmp_path / "pictures"


def test_a_full_disk_at_the_start_is_for_the_user_to_change(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full_disk)

    with pytest.raises(ConfigError, match="No space left on device"):
        open_run(tmp_path, record=record())

    assert list(tmp_path.iterdir()) == []


def test_the_litter_of_interrupted_writes_is_swept(tmp_path):
    open_run(tmp_path, record=record())
    rundir = RunDir(tmp_path)
    rundir.weights.mkdir()
    (rundir.weights / ".tmpAbC123").write_bytes(b"of safetensors")
    (tmp_path / ".tmp-results.json-00").write_text("{")

    open_run(tmp_path, record=record())

    assert not list(tmp_path.rglob(".tmp*"))


def test_sweeping_a_folder_that_is_not_there_does_nothing(tmp_path):
    remove_stale_temporaries(tmp_path / "nowhere")

    assert list(tmp_path.iterdir()) == []


# Files


def full_disk(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_json_comes_back_and_ends_in_a_newline(tmp_path):
    write_json_atomic(tmp_path / "results.json", {"name": "\udcff é", "values": [1.5, None]})

    text = (tmp_path / "results.json").read_text()
    assert json.loads(text) == {"name": "\udcff é", "values": [1.5, None]}
    assert text.endswith("}\n")


def test_a_failed_write_keeps_the_file_from_before(tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    write_json_atomic(file, {"knn": 1})
    monkeypatch.setattr(os, "fsync", full_disk)

    with pytest.raises(ConfigError, match="results.json: cannot be written: No space left"):
        write_json_atomic(file, {"knn": 2})

    assert json.loads(file.read_text()) == {"knn": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_content_and_name_are_synced_before_it_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))

    write_json_atomic(tmp_path / "results.json", {})

    assert synced == [path.stat().st_ino for path in (tmp_path / "results.json", tmp_path)]


def test_what_is_no_json_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_json_atomic(tmp_path / "results.json", {"path": Path("x")})

    assert list(tmp_path.iterdir()) == []


# What a record names


def test_versions_name_what_a_result_depends_on():
    assert {"python", "mae-vision", "torch", "numpy"} <= versions().keys()


def test_git_state_outside_a_checkout_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    assert git_state() is None


def test_git_state_without_git_is_none(monkeypatch):
    monkeypatch.setenv("PATH", "")

    assert git_state() is None


def test_git_state_names_the_commit_and_whether_files_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    try:
        subprocess.run(["git", "init", "-q"], check=True)
    except FileNotFoundError:
        pytest.skip("needs git")
    Path("file").write_text("1")
    subprocess.run(["git", "add", "file"], check=True)
    subprocess.run(["git", *identity, "commit", "-qm", "first"], check=True)

    clean = git_state()
    Path("file").write_text("2")
    changed = git_state()

    assert len(clean["commit"]) == 40
    assert (clean["changed"], changed["changed"]) == (False, True)
    assert clean["commit"] == changed["commit"]
