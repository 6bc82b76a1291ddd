"""Run functions on several real ranks, forked from one process so that torch is imported once."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.fsdp import fully_shard

from mae.errors import RankError
from mae.parallel.processes import Communicator, open_communicator
from mae.runs.state import TrainState

Act = Callable[[Communicator], object]


def start(count: int, act: Act) -> list[tuple[int, int]]:
    """Fork ranks that call `act`; return the process id and the result's pipe of each.

    The caller must have started no threads: no process group, and one thread of torch.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(count):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            os._exit(_child(rank, count, port, act, write))
        os.close(write)
        started.append((child, read))
    return started


def results(started: list[tuple[int, int]]) -> list[Any]:
    """Wait for the ranks; return their results, None for a rank that was killed."""
    found = []
    for child, read in started:
        with os.fdopen(read, "rb") as pipe:
            content = pipe.read()
        os.waitpid(child, 0)
        found.append(pickle.loads(content) if content else None)
    return found


def on_ranks(count: int, act: Act) -> list[Any]:
    """Call `act` on so many ranks; return what each of them returned."""
    return results(start(count, act))


def _child(rank: int, count: int, port: int, act: Act, write: int) -> int:
    os.environ |= {
        "WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
    }  # fmt: skip
    try:
        with open_communicator(timeout_s=60) as ranks:
            found = act(ranks)
    except RankError:  # another one was killed
        return 1
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    with os.fdopen(write, "wb") as pipe:
        pickle.dump(found, pipe)
    return 0


def shard(state: TrainState, make_optimizer: Callable[..., torch.optim.Optimizer]) -> TrainState:
    """Divide the model of a state without moments among all ranks."""
    model = fully_shard(state.model)
    return TrainState(model=model, optimizer=make_optimizer(model.parameters()), step=state.step)
