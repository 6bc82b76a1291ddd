"""Savers that write in a thread while the state changes; on several ranks run as a script.

    python -m tests.runs.async_saver FOLDER

Two ranks save a sharded state twenty times and change it right after each call. Prints one JSON
object: the steps whose checkpoint holds the values of its step.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from mae.parallel.processes import SINGLE_PROCESS, Communicator
from mae.runs.checkpoint import load_step
from mae.runs.state import TrainState
from mae.train.saver import CheckpointSaver
from tests.runs.on_ranks import on_ranks, shard

SAVES, VALUES = 20, 60_000


def run_of(folder: Path, said: list[str], ranks: Communicator = SINGLE_PROCESS) -> Any:
    """Return what a saver needs of a run of 1,000 steps, which prints into `said`."""
    config = SimpleNamespace(async_save=True, keep=SAVES)
    progress, rundir = SimpleNamespace(note=said.append), SimpleNamespace(checkpoints=folder)
    record = {"num_steps": 1000}
    return SimpleNamespace(
        config=config, progress=progress, rundir=rundir, record=record, ranks=ranks
    )


def set_values(state: TrainState, value: float) -> None:
    """Make every number of the model and of the moments the same."""
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.fill_(value)
            moments = state.optimizer.state[parameter]
            for tensor in moments.values():
                tensor.fill_(value)
            for name in {"exp_avg", "exp_avg_sq"} - moments.keys():
                moments[name] = torch.full_like(parameter, value)
            moments.setdefault("step", torch.tensor(value))


def holds(state: TrainState, value: float) -> bool:
    """Return whether every number of a state is this one."""
    (parameter,) = state.model.parameters()
    moments: list[Tensor] = list(state.optimizer.state[parameter].values())
    return len(moments) == 3 and all(bool((t == value).all()) for t in (parameter, *moments))


def plain_state() -> TrainState:
    model = nn.Linear(1, VALUES, bias=False)  # each rank holds some rows
    return TrainState(model=model, optimizer=torch.optim.AdamW(model.parameters()))


def sharded_state() -> TrainState:
    return shard(plain_state(), torch.optim.AdamW)


def save_and_change(folder: Path, ranks: Communicator) -> list[str]:
    """Save in the thread, and change the state while collectives of this thread go on."""
    state, said = sharded_state(), list[str]()
    with CheckpointSaver(run_of(folder, said, ranks), state) as saver:
        for step in range(1, SAVES + 1):
            state.step = step
            set_values(state, float(step))
            saver.save(state)
            set_values(state, -1.0)
            for _ in range(3):
                ranks.all_reduce(torch.ones(5))
            saver.poll()
    return said


def loaded(folder: Path, ranks: Communicator) -> list[int]:
    """Return the steps of which this rank finds the values."""
    state = sharded_state()
    found = []
    for step in range(1, SAVES + 1):
        load_step(folder, state, step=step)
        found += [step] * (holds(state, step) and ranks.process.world_size == 2)
    return found


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    said = on_ranks(2, partial(save_and_change, folder))
    print(json.dumps({"said": said, "found": on_ranks(2, partial(loaded, folder))}))


if __name__ == "__main__":
    main()
