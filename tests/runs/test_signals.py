import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from mae.errors import INTERRUPTED, REQUEUE, ConfigError, Stopped
from mae.runs.signals import RunLock, StopSignal

LOOP = """
import time
from mae.runs.signals import StopSignal
with StopSignal() as stop:
    print("running", flush=True)
    while stop.requested is None:
        time.sleep(0.005)
    print("asked", flush=True)
    time.sleep(SAVING_S)
    print("saved", flush=True)
raise SystemExit(stop.requested)
"""

BUSY = """
import hashlib
from mae.runs.signals import StopSignal
hashlib.pbkdf2_hmac("sha256", b"", b"", 1)
with StopSignal() as stop:
    print("running", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000_000)  # one call, of a minute
"""

BEFORE = """
import time
from mae.errors import Stopped
from mae.runs.signals import StopSignal
try:
    with StopSignal("", command=["mae", "pretrain", "--data", "my images"]):
        print("running", flush=True)
        time.sleep(60)
except Stopped as stopped:
    print(stopped, flush=True)
    raise SystemExit(stopped.exit_code)
"""

LOCKER = """
import sys
from pathlib import Path
from mae.errors import ConfigError
from mae.runs.signals import RunLock
print("ready", flush=True)
sys.stdin.readline()
try:
    with RunLock(Path(sys.argv[1])):
        print("won", flush=True)
        sys.stdin.readline()
except ConfigError as error:
    print(error, flush=True)
    sys.exit(2)
"""


@pytest.fixture
def start():
    """Start Python programs; none outlives the test."""
    started = []

    def start_program(program, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start_program
    for process in started:
        process.kill()
        process.communicate()


def start_loop(start, *, saving_s):
    process = start(LOOP.replace("SAVING_S", str(saving_s)))
    assert process.stdout.readline() == "running\n"
    return process


# Signals

EXIT_CODES = [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]


@pytest.mark.parametrize(("number", "code"), EXIT_CODES)
def test_a_signal_lets_the_loop_finish_and_names_its_exit_code(start, number, code):
    process = start_loop(start, saving_s=0)

    process.send_signal(number)

    output, _ = process.communicate(timeout=10)
    assert output == "asked\nsaved\n"
    assert process.returncode == code


@pytest.mark.parametrize(("number", "code"), EXIT_CODES)
def test_a_second_signal_ends_at_once(start, number, code):
    process = start_loop(start, saving_s=60)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "asked\n"
    time.sleep(0.4)

    sent = time.monotonic()
    process.send_signal(number)
    output, _ = process.communicate(timeout=10)

    assert time.monotonic() - sent < 2
    assert "saved" not in output
    assert process.returncode == code


def test_a_signal_delivered_several_times_at_once_is_one_request(start):
    # GNU timeout signals its child, then the child's group.
    process = start_loop(start, saving_s=0.1)

    for _ in range(5):
        process.send_signal(signal.SIGTERM)

    output, _ = process.communicate(timeout=10)
    assert output == "asked\nsaved\n"
    assert process.returncode == 75


def test_a_rank_leaves_a_second_signal_to_its_launcher(start, monkeypatch):
    # Ctrl-C sent to the launcher and to all ranks reaches a rank twice, any time apart.
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mae-1-2")
    process = start_loop(start, saving_s=0.6)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "asked\n"
    time.sleep(0.4)

    process.send_signal(signal.SIGINT)

    output, errors = process.communicate(timeout=10)
    assert (output, errors) == ("saved\n", "")
    assert process.returncode == 130


def test_a_signal_is_acknowledged_and_obeyed_within_a_call_that_takes_long(start):
    process = start(BUSY)
    assert process.stdout.readline() == "running\n"

    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    line = process.stderr.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    code = process.wait(timeout=10)

    assert line == "mae: finishing this step, then saving; press Ctrl-C again to stop now\n"
    assert code == 130
    assert time.monotonic() - sent < 5


@pytest.mark.parametrize(("number", "code"), EXIT_CODES)
def test_where_there_is_nothing_to_save_the_first_signal_stops(start, number, code):
    process = start(BEFORE)
    assert process.stdout.readline() == "running\n"

    process.send_signal(number)

    output, said = process.communicate(timeout=10)
    assert output == "stopped before training; to resume: mae pretrain --data 'my images'\n"
    assert process.returncode == code
    assert said.startswith("mae: stopping; ") and said.count("\n") == 1


def test_the_wakeup_file_from_before_is_put_back():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing)
    try:
        with StopSignal():
            pass
        assert signal.set_wakeup_fd(writing) == writing
    finally:
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)


def test_no_thread_is_left():
    before = threading.active_count()

    with StopSignal():
        assert threading.active_count() == before + 1

    assert threading.active_count() == before


def test_a_call_from_python_is_told_to_call_again():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)

    stopped = stop.stopped("stopped at step 3 of 9")
    assert str(stopped) == "stopped at step 3 of 9; the same call resumes it"
    assert stopped.exit_code == 75


def test_nothing_is_requested_while_nobody_asks():
    with StopSignal() as stop:
        assert stop.requested is None


def test_the_handlers_from_before_are_put_back():
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]

    with pytest.raises(KeyError), StopSignal():
        assert [signal.getsignal(number) for number in numbers] != before
        raise KeyError

    assert [signal.getsignal(number) for number in numbers] == before


def test_the_code_is_still_known_after_the_block():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)

    assert stop.requested == INTERRUPTED == 130


def test_outside_the_main_thread_it_does_nothing():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def enter():
        with StopSignal() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.requested))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()

    assert seen == [(before, None)]


def test_stopped_carries_its_exit_code():
    stopped = Stopped("stopped at step 3", exit_code=REQUEUE)

    assert (str(stopped), stopped.exit_code) == ("stopped at step 3", 75)


# The lock


def test_a_held_lock_is_refused_with_host_and_pid(tmp_path):
    with RunLock(tmp_path / "lock"):
        with pytest.raises(ConfigError) as caught, RunLock(tmp_path / "lock"):
            pass

    message = str(caught.value)
    assert f"process {os.getpid()} on {socket.gethostname()}" in message
    assert "--out" in message and "\n" not in message
    assert caught.value.exit_code == 2


def test_a_refused_start_leaves_the_owner_named(tmp_path):
    with RunLock(tmp_path / "lock"):
        for _ in range(3):
            with pytest.raises(ConfigError, match=f"process {os.getpid()} "):
                RunLock(tmp_path / "lock").__enter__()


def test_a_freed_lock_can_be_taken(tmp_path):
    for _ in range(2):
        with RunLock(tmp_path / "lock"):
            assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_lock_is_freed_when_the_block_fails(tmp_path):
    with pytest.raises(KeyError), RunLock(tmp_path / "lock"):
        raise KeyError

    with RunLock(tmp_path / "lock"):
        pass


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="No such file") as caught:
        RunLock(tmp_path / "nowhere" / "lock").__enter__()

    assert "\n" not in str(caught.value)


def test_of_ten_starts_at_once_exactly_one_wins(start, tmp_path):
    racers = [start(LOCKER, tmp_path / "lock") for _ in range(10)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"

    sent = time.monotonic()
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    answers = [racer.stdout.readline() for racer in racers]

    assert time.monotonic() - sent < 5
    assert answers.count("won\n") == 1
    assert sum("in use by" in answer for answer in answers) == 9
    winner = racers[answers.index("won\n")]
    assert {racer.wait(timeout=10) for racer in racers if racer is not winner} == {2}


@pytest.mark.parametrize("before", ["", "process {} on {}"], ids=["empty", "of a former owner"])
def test_an_owner_that_has_only_just_locked_is_named_all_the_same(start, tmp_path, before):
    former = start("")
    former.wait()
    lock, owner = tmp_path / "lock", f"process {os.getpid()} on {socket.gethostname()}"
    lock.write_text(before.format(former.pid, socket.gethostname()))
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = threading.Timer(0.2, lambda: lock.write_text(owner))
        writer.start()
        with pytest.raises(ConfigError, match=f"in use by {owner}; wait"):
            RunLock(lock).__enter__()
        writer.join()


def test_kill_nine_frees_the_lock_at_once(start, tmp_path):
    owner = start(LOCKER, tmp_path / "lock")
    owner.stdin.write("go\n")
    owner.stdin.flush()
    assert [owner.stdout.readline() for _ in range(2)] == ["ready\n", "won\n"]
    with pytest.raises(ConfigError, match=f"process {owner.pid} on"):
        RunLock(tmp_path / "lock").__enter__()

    owner.kill()
    owner.wait()

    with RunLock(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")
