"""One job as several processes: each image counts once, and one alone speaks."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mae.cli.main import main
from mae.errors import ConfigError
from mae.evaluation.inputs import FeatureSettings
from mae.evaluation.knn import knn_accuracy
from mae.model.classifier import Classifier
from mae.model.create import create
from mae.parallel.processes import ProcessInfo, open_communicator, this_process
from mae.weights.formats.native import save
from tests.jobs.conftest import TINY, write_classes

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
"""As torchrun has it: the number of threads may change a last bit."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give 17 images of three classes, and one that is broken."""
    root = write_classes(tmp_path_factory.mktemp("images") / "d", "a", "b", "c", count=6)
    (root / "b" / "5.png").write_bytes(b"nothing")
    return root


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = Classifier(create(TINY).encoder, num_classes=3)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    return save(model, tmp_path_factory.mktemp("made") / "w", class_names=list("abc"))


def started(count: int, *words: str) -> subprocess.Popen[str]:
    """Start the command as several processes; --standalone takes a port that is free."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    mae = Path(sys.executable).with_name("mae")
    many = [f"--nproc-per-node={count}", "--no-python", str(mae)]
    return subprocess.Popen(
        [*launcher, *many, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip


def ended(job: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for the processes of a job."""
    out, err = job.communicate(timeout=250)
    return subprocess.CompletedProcess(job.args, job.returncode, out, err)


def torchrun(count: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command as several processes."""
    return ended(started(count, *words))


def by_ranks(count: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command as several processes by its own option."""
    command = [sys.executable, "-m", "mae", *words, f"--ranks={count}"]
    return subprocess.run(
        command, capture_output=True, text=True, env=ENVIRONMENT, timeout=250, check=False
    )


@pytest.fixture
def alone(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Run the command as this one process, on one thread as the others; give what it prints."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(*words: str) -> str:
        assert main(words) == 0
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize(("start", "count"), [(by_ranks, 2), (torchrun, 3)])
def test_several_processes_evaluate_as_one_does_to_the_last_digit(
    start: Callable[..., subprocess.CompletedProcess[str]],
    count: int,
    classifier: Path,
    images: Path,
    tmp_path: Path,
    alone: Callable[..., str],
) -> None:
    words = ["evaluate", str(classifier), f"--data={images}", "--batch=4", "--json"]
    words += ["--predictions", str(tmp_path / "p.csv")]
    whole = alone(*words)
    table = (tmp_path / "p.csv").read_bytes()
    (tmp_path / "p.csv").unlink()

    shared = start(count, *words)

    assert shared.returncode == 0, shared.stderr
    assert shared.stdout == whole and json.loads(shared.stdout)["images"] == 17
    assert (tmp_path / "p.csv").read_bytes() == table
    assert shared.stderr.count("1 unreadable, left out: b/5.png") == 1
    assert f"image in 1 of {count} processes" in shared.stderr


@pytest.mark.slow
@pytest.mark.parametrize("method", [["knn", "--k=3"], ["linear"]], ids=["knn", "linear"])
def test_several_processes_probe_as_one_does_to_the_last_digit(
    method: list[str], weights: Path, images: Path, tmp_path: Path, alone: Callable[..., str]
) -> None:
    words = ["probe", *method, str(weights), f"--data={images}", "--batch=4"]
    words += ["--labels=3/class", "--seeds=2", f"--labels-out={tmp_path / 'few.csv'}", "--json"]
    whole = alone(*words)

    shared = torchrun(2, *words)

    assert shared.returncode == 0, shared.stderr
    assert shared.stdout == whole
    with (tmp_path / "few.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 1 + 2 * 9


@pytest.mark.slow
def test_the_papers_probe_of_two_processes_is_that_of_one_up_to_rounding(
    weights: Path, tmp_path: Path, alone: Callable[..., str]
) -> None:
    data = write_classes(tmp_path / "d", "a", "b", "c", count=10)
    (data / "b" / "5.png").write_bytes(b"nothing")  # in the training part
    words = ["probe", "linear", str(weights), f"--data={data}", "--protocol=paper", "--lr=400"]
    words += ["--epochs=20", "--batch=11", "--seeds=2", "--device=cpu", "--json"]
    whole = json.loads(alone(*words))

    shared = torchrun(2, *words)

    assert shared.returncode == 0, shared.stderr
    found = json.loads(shared.stdout)
    assert found.pop("loss") == pytest.approx(whole.pop("loss"), rel=1e-4)
    assert found == whole and found["steps"] == 40 and found["seeds"] == [0, 1]
    assert shared.stderr.count("unreadable: b/5.png") == 2  # once a seed


@pytest.mark.slow
def test_two_processes_are_stopped_and_three_end_with_the_file_of_one(
    weights: Path, tmp_path: Path, alone: Callable[..., str]
) -> None:
    data = write_classes(tmp_path / "d", "a", "b", "c", count=40)
    (data / "b" / "7.png").write_bytes(b"nothing")
    words = ["embed", str(weights), f"--data={data}", "--batch=2"]
    alone(*words, f"--out={tmp_path / 'one.npy'}")
    words.append(f"--out={tmp_path / 'many.npy'}")
    store = tmp_path / ".many.npy.part"

    job = started(2, *words)
    while len(list(store.glob("batches/*.npy"))) < 3:
        assert job.poll() is None
        time.sleep(0.01)
    os.kill(int((store / "lock").read_text().split()[1]), signal.SIGTERM)  # the first alone
    stopped = ended(job)

    assert stopped.stderr.count("images are done; to resume: mae embed ") == 1
    assert "exitcode  : 75 " in stopped.stderr.partition("Root Cause")[2]
    assert "mae/jobs" not in stopped.stderr  # of a traceback
    assert not (tmp_path / "many.npy").exists() and not list(store.glob("batches/.tmp*"))

    again = torchrun(3, *words)

    assert again.returncode == 0, again.stderr
    assert again.stderr.count("resuming: ") == again.stderr.count("1 unreadable, left out") == 1
    for name in ("npy", "tsv", "bad-files.tsv"):
        assert (tmp_path / f"many.{name}").read_bytes() == (tmp_path / f"one.{name}").read_bytes()
    assert not store.exists()


@pytest.mark.slow
def test_a_mistake_is_said_once_and_ends_all(classifier: Path, tmp_path: Path) -> None:
    write_classes(tmp_path / "d", "a", "x", count=2)

    shared = torchrun(2, "evaluate", str(classifier), f"--data={tmp_path / 'd'}")

    ours = [line for line in shared.stderr.splitlines() if line.startswith("mae: ")]
    assert len(ours) == 1 and "1 of 2 classes are unknown to the classifier: x" in ours[0]
    assert shared.returncode != 0 and shared.stdout == ""
    assert "exitcode  : 2 " in shared.stderr.partition("Root Cause")[2]
    assert "mae/jobs/evaluate.py" not in shared.stderr  # of a traceback


def test_what_takes_one_process_refuses_several(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    several(monkeypatch, rank=0)

    for words in ("demo", "reconstruct w i", "report r"):
        assert main(words.split()) == 2
        verb = " ".join(words.split()[:1])
        assert capsys.readouterr().err == (
            f"mae: ranks: {verb} takes one process, got 3; start it without --ranks and torchrun\n"
        )


def test_other_processes_leave_a_mistake_to_the_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    several(monkeypatch, rank=1)
    monkeypatch.setattr("mae.cli.main._ERROR_DELAY_S", 0)

    assert main(["demo"]) == 2

    said = capsys.readouterr()
    assert said.out == said.err == ""


def several(monkeypatch: pytest.MonkeyPatch, *, rank: int) -> None:
    """Let this process be one of three."""
    said = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 3, "MASTER_ADDR": "a", "MASTER_PORT": 1}
    for name, value in said.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("name", "text"),
    [("RANK", ""), ("RANK", "3"), ("LOCAL_RANK", "x"), ("MASTER_ADDR", ""), ("MASTER_PORT", "tcp")],
)
def test_half_an_environment_is_one_line(
    name: str, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    several(monkeypatch, rank=1)
    monkeypatch.setenv(name, text)

    assert main(["demo"]) == 2

    line = capsys.readouterr().err
    assert line.startswith(f"mae: ranks: WORLD_SIZE is '3', but got {name}={text}, expected what")


def test_one_process_needs_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")

    assert this_process() == ProcessInfo()
    with open_communicator() as ranks:
        assert ranks.all_gather("mine") == ["mine"]


@pytest.mark.parametrize("count", [1, 2, 3, 23])
def test_shares_are_every_item_once(count: int) -> None:
    shares = [ProcessInfo(rank, count).shard(range(17)) for rank in range(count)]

    assert sorted(item for share in shares for item in share) == list(range(17))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


class Gathering:
    """Stands in for the processes of a job, one after the other."""

    def __init__(self, process: ProcessInfo) -> None:
        self.process = process
        self.given: list[int] = []

    def all_gather(self, mine: int) -> list[int]:
        self.given.append(mine)
        return [mine]


@pytest.mark.parametrize("count", [2, 3, 9])
def test_shares_of_the_test_rows_add_up_to_the_accuracy(count: int) -> None:
    rng = np.random.default_rng(0)
    train_x, test_x = (rng.normal(size=(n, 5)).astype(np.float32) for n in (31, 7))
    train_y, test_y = rng.integers(0, 3, 31), rng.integers(0, 3, 7)
    parts = [Gathering(ProcessInfo(rank, count)) for rank in range(count)]

    for part in parts:
        knn_accuracy(train_x, train_y, test_x, test_y, k=3, ranks=part)  # type: ignore[arg-type]

    right = sum(part.given[0] for part in parts)
    assert right / 7 == knn_accuracy(train_x, train_y, test_x, test_y, k=3)


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr("mae.evaluation.inputs.choose_device", lambda name: gpu)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    auto = FeatureSettings()

    assert auto.at(ProcessInfo(5, 6, 1)).device == "cuda:1"
    assert auto.at(ProcessInfo()) == auto
    with pytest.raises(ConfigError, match="process 3 on a machine of 2 GPUs, expected one each"):
        auto.at(ProcessInfo(5, 6, 2))


# Without torchrun, which ends the others as soon as one has failed: here they have to notice.
MEETING = """
import os, signal, sys
from mae.errors import DataError
from mae.parallel.processes import open_communicator
with open_communicator(timeout_s=float(sys.argv[2])) as ranks:
    place = ranks.process
    sizes = [len(each) for each in ranks.all_gather("x" * place.rank)]
    if place.rank == 1 and sys.argv[1] == "mistakes":
        raise DataError("of the second")
    if place.rank == 1 and sys.argv[1] != "well":
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    print(sizes, ranks.all_gather(place.rank), flush=True)
    import torch.distributed.nn.functional
threads = {open(f"/proc/self/task/{each}/comm").read() for each in os.listdir("/proc/self/task")}
assert not any("gloo" in name for name in threads), threads
"""


def met(what: str, *, count: int, timeout_s: int) -> list[subprocess.Popen[str]]:
    """Start the processes of a meeting, in which the second does something."""
    from socket import socket

    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, "-c", MEETING, what, str(timeout_s)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=ENVIRONMENT | {n: str(v) for n, v in {**said, "RANK": r, "LOCAL_RANK": r}.items()},
        )
        for r in range(count)
    ]  # fmt: skip


@pytest.mark.slow
def test_what_each_found_reaches_all_in_their_order() -> None:
    said = [each.communicate(timeout=60) for each in met("well", count=3, timeout_s=60)]

    assert said == [("[0, 1, 2] [0, 1, 2]\n", "")] * 3


@pytest.mark.slow
def test_a_mistake_of_one_is_raised_in_all() -> None:
    said = [p.communicate(timeout=60) for p in met("mistakes", count=3, timeout_s=60)]

    assert all(err.endswith("mae.errors.DataError: of the second\n") for _, err in said)


@pytest.mark.slow
def test_a_killed_process_ends_the_others_at_once() -> None:
    first, second = met("SIGKILL", count=2, timeout_s=60)

    _, err = first.communicate(timeout=50)
    second.communicate()

    assert second.returncode == -signal.SIGKILL and first.returncode == 1
    assert "RankError: ranks: rank 1 ended or did not answer" in err


@pytest.mark.slow
def test_a_frozen_process_ends_the_others_after_the_timeout() -> None:
    first, second = met("SIGSTOP", count=2, timeout_s=10)

    _, err = first.communicate(timeout=60)
    second.kill()
    second.communicate()

    assert first.returncode == 1
    assert "RankError: ranks: rank 1 ended or did not answer" in err
