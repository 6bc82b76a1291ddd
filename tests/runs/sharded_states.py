"""Tiny states on several ranks: saved by two, loaded by others. Run as a script.

    python -m tests.runs.sharded_states FOLDER

Prints one JSON object: the digest of what was saved, and of what each number of ranks loaded.
"""

from __future__ import annotations

import hashlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae.parallel.processes import SINGLE_PROCESS, Communicator
from mae.runs.checkpoint import load_checkpoint, load_step, save_checkpoint
from mae.runs.state import TrainState
from tests.runs.on_ranks import on_ranks, shard
from tests.runs.test_checkpoint import contents, make_state, train

ADAMW = partial(torch.optim.AdamW, lr=0.05)


def sharded_state(seed: int = 0) -> TrainState:
    return shard(make_state(seed), ADAMW)


def digest(state: TrainState) -> str:
    """Digest all tensors of a state, whole, on every rank."""
    found = hashlib.sha256(f"{state.step} {state.bad_in_a_row}".encode())
    for name, tensor in sorted(contents(state).items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(whole(tensor).numpy().tobytes())
    return found.hexdigest()


def whole(tensor: Tensor) -> Tensor:
    sharded: Any = tensor
    return sharded.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def save(folder: Path, ranks: Communicator, *, sharded: bool) -> str:
    state = sharded_state() if sharded else make_state()
    train(state, 3).bad_in_a_row = 1
    if sharded or ranks.is_main_process:
        save_checkpoint(folder, state, extra={"of": 3}, keep=2, ranks=ranks)
    return digest(state)


def load(folder: Path, ranks: Communicator, *, sharded: bool) -> str:
    """Load as a run does: rank 0 chooses, the others load the same step."""
    state = sharded_state(seed=9) if sharded else make_state(seed=9)
    said: list[str] = []

    def newest() -> int:
        assert load_checkpoint(folder, state, log=said.append) == {"of": 3}
        return state.step

    step = ranks.on_main(newest)
    if not ranks.is_main_process:
        load_step(folder, state, step=step)
    assert not said, said
    return digest(state)


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    found: dict[str, list[str]] = {}
    for kind in (True, False):
        name = "sharded" if kind else "plain"
        found[f"{name} saved"] = on_ranks(2, partial(save, folder / name, sharded=kind))
        for count in (1, 2, 3, 4):
            for into in (True, False):
                act = partial(load, folder / name, sharded=into)
                key = f"{name} into {'sharded' if into else 'plain'} on {count}"
                if count == 1 and into:
                    continue
                found[key] = [act(SINGLE_PROCESS)] if count == 1 else on_ranks(count, act)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
