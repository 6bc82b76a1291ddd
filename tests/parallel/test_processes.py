"""What the ranks of a job share, and how an error of one reaches the others."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from socket import socket

import pytest

from mae.errors import DataError, MaeError, Stopped
from mae.parallel.processes import SINGLE_PROCESS, Communicator, ProcessInfo

SCRIPT = """
import torch
from mae.errors import DataError, Stopped
from mae.parallel.processes import open_communicator
with open_communicator(timeout_s=60) as ranks:
    rank = ranks.process.rank
    print(ranks.on_main(lambda: f"made by {rank}"))
    values = torch.tensor([1.0, 10.0 * rank])
    ranks.all_reduce(values)
    print(values.tolist())
    try:
        ranks.on_main(lambda: [][rank] if rank else (_ for _ in ()).throw(DataError("of rank 0")))
    except DataError as error:
        print(error)
try:
    with open_communicator(timeout_s=60) as ranks:
        if rank == 1:
            raise Stopped("asked to", exit_code=130)
        ranks.all_reduce(values)  # rank 1 will not come
except Stopped as error:
    print(error, error.exit_code, flush=True)
"""


def two_processes(script: str) -> list[tuple[str, str]]:
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=os.environ | {
                name: str(value) for name, value in (said | {"RANK": r, "LOCAL_RANK": r}).items()
            },
        )
        for r in range(2)
    ]  # fmt: skip
    return [process.communicate(timeout=120) for process in processes]


@pytest.mark.slow
def test_both_get_what_rank_0_makes_and_the_stop_of_rank_1_in_an_all_reduce() -> None:
    said = two_processes(SCRIPT)

    assert said == [("made by 0\n[2.0, 10.0]\nof rank 0\nasked to 130\n", "")] * 2


def test_one_process_makes_it_itself() -> None:
    def fail() -> None:
        raise DataError("own")

    assert SINGLE_PROCESS.on_main(lambda: 3) == 3
    assert SINGLE_PROCESS.all_gather("mine") == ["mine"]
    with pytest.raises(DataError, match="own"):
        SINGLE_PROCESS.on_main(fail)


class Store(dict[str, bytes]):
    """Stands in for the store of a job."""

    def check(self, keys: list[str]) -> bool:
        return keys[0] in self

    def set(self, key: str, value: bytes) -> None:
        self[key] = value


def test_who_is_stopped_because_another_failed_says_why_that_one_failed() -> None:
    store = Store()
    first, second = (Communicator(ProcessInfo(r, 2, r), store) for r in (0, 1))  # type: ignore[arg-type]
    failed, stopped = DataError("of the second"), Stopped("by torchrun", exit_code=75)

    assert second.leave(failed) is failed
    assert repr(first.leave(stopped)) == repr(failed)
    assert first.leave(stopped) is stopped  # having left


@pytest.mark.parametrize("error", [DataError("a"), Stopped("b", exit_code=130)])
def test_errors_reach_another_process_whole(error: MaeError | Stopped) -> None:
    there = pickle.loads(pickle.dumps(error))

    assert (type(there), str(there)) == (type(error), str(error))
    assert there.exit_code == error.exit_code
