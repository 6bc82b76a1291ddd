"""Kill processes that save in a loop, and count what a next start finds. Run as a script.

    python killed_saver.py FOLDER ROUNDS SEED

Each round forks a process that goes on from the newest checkpoint and kills it at a random moment
(a fork, so that torch is imported once). Prints one JSON object.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from mae.runs.checkpoint import load_checkpoint, save_checkpoint
from mae.runs.state import TrainState

VALUES = 60_000


def fresh_state() -> TrainState:
    model = nn.Linear(VALUES, 1, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    return TrainState(model=model, optimizer=optimizer)


def set_step(state: TrainState, step: int) -> None:
    """Make every number of the state tell its step."""
    state.step = step
    with torch.no_grad():
        state.model.weight.fill_(step)
    state.optimizer.state[state.model.weight] = {
        "step": torch.tensor(float(step)),
        "exp_avg": torch.full((1, VALUES), float(step)),
        "exp_avg_sq": torch.full((1, VALUES), float(step)),
    }


def load(folder: Path) -> TrainState:
    state, said = fresh_state(), []
    extra = load_checkpoint(folder, state, log=said.append)
    assert not said, said
    if extra is None:
        return state
    assert extra == {"of": state.step}
    moments = state.optimizer.state[state.model.weight]
    assert set(moments) == {"step", "exp_avg", "exp_avg_sq"}
    for tensor in (state.model.weight, *moments.values()):
        assert (tensor == state.step).all(), "a torn checkpoint was loaded"
    return state


def save_forever(folder: Path, acknowledge: int) -> None:
    state = load(folder)
    while True:
        set_step(state, state.step + 1)
        save_checkpoint(folder, state, extra={"of": state.step}, keep=2)
        os.write(acknowledge, f"{state.step}\n".encode())


def killed_round(folder: Path, *, delay_s: float) -> int:
    """Let a process save for a while, kill it, return the last step it acknowledged."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        save_forever(folder, write)
    os.close(write)
    first = os.read(read, 20)  # the delay runs from the first save on
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    rest = b"".join(iter(lambda: os.read(read, 4096), b""))
    os.close(read)
    return int((first + rest).split()[-1])


def main() -> None:
    folder, rounds, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    draws = random.Random(seed)
    steps, inside = [], 0
    for _ in range(rounds):
        acknowledged = killed_round(folder, delay_s=draws.uniform(0, 0.05))
        inside += any(folder.glob(".tmp-*")) or any(folder.glob(".del-*"))
        found = load(folder).step
        assert acknowledged <= found <= acknowledged + 1, (acknowledged, found)
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
        steps.append(found)
    print(json.dumps({"rounds": rounds, "inside_a_save": inside, "last_step": steps[-1]}))


if __name__ == "__main__":
    main()
