"""Kill two ranks that save together in a loop, or fill their disk. Run as a script.

    python -m tests.runs.killed_sharded_saver kill FOLDER ROUNDS SEED
    python -m tests.runs.killed_sharded_saver fill FOLDER PAGES
    python -m tests.runs.killed_sharded_saver fill-async FOLDER PAGES

Each round forks two ranks that go on from the newest checkpoint. One of them dies before its n-th
change to the disk, or both at a random moment. Prints one line of JSON a round.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mae.parallel.processes import Communicator
from mae.runs.checkpoint import NotSaved, load_checkpoint, load_step, save_checkpoint
from mae.runs.state import TrainState
from mae.train.saver import CheckpointSaver
from tests.chaos.faults import die_at_change
from tests.runs.async_saver import holds, plain_state, run_of, set_values, sharded_state
from tests.runs.on_ranks import on_ranks, results, start

CHANGES = (24, 3)
"""Changes to the disk that rank 0 and rank 1 make in a save, about."""


def resumed(folder: Path, ranks: Communicator) -> TrainState:
    state = sharded_state()

    def newest() -> int | None:
        return None if load_checkpoint(folder, state, log=print) is None else state.step

    step = ranks.on_main(newest)
    if step is not None and not ranks.is_main_process:
        load_step(folder, state, step=step)
    return state


def save(folder: Path, state: TrainState, ranks: Communicator) -> None:
    state.step += 1
    set_values(state, float(state.step))
    save_checkpoint(folder, state, extra={}, keep=2, ranks=ranks)


def save_forever(folder: Path, dying: tuple[int, int] | None, ranks: Communicator) -> None:
    """Save and acknowledge, until killed.

    Args:
        folder: of the checkpoints.
        dying: the rank that dies, and before which of its changes to the disk.
        ranks: the two.
    """
    state, file = resumed(folder, ranks), -1
    if ranks.is_main_process:
        file = os.open(folder.parent / "acknowledged", os.O_WRONLY)
    while True:
        save(folder, state, ranks)
        if ranks.is_main_process:
            os.pwrite(file, str(state.step).encode(), 0)
        if dying is not None and dying[0] == ranks.process.rank:
            die_at_change(dying[1], under=str(folder))
            dying = None


def killed_round(folder: Path, number: int, draws: random.Random) -> dict[str, Any]:
    """Let two ranks save, kill them, and load what is left in one process."""
    (folder.parent / "acknowledged").write_text("")
    rank = number // 2 % 2
    dying = None if number % 4 == 3 else (rank, draws.randrange(CHANGES[rank]))
    ranks = start(2, partial(save_forever, folder, dying))
    if dying is None:
        while not (folder.parent / "acknowledged").read_text():
            time.sleep(0.001)
        time.sleep(draws.uniform(0, 0.2))
        for child, _ in ranks:
            os.kill(child, signal.SIGKILL)
    results(ranks)
    acknowledged = int((folder.parent / "acknowledged").read_text())
    inside = any(folder.glob(".*"))
    state, said = plain_state(), list[str]()
    load_checkpoint(folder, state, log=said.append)
    fault = ""
    if said or not holds(state, state.step):
        fault = f"torn or damaged: step {state.step}, {said}"
    elif not acknowledged <= state.step <= acknowledged + 1:
        fault = f"step {acknowledged} was acknowledged, {state.step} was found"
    elif left := [path.name for path in folder.glob(".*")]:
        fault = f"left after the next start: {left}"
    return {"fault": fault and f"{dying}: {fault}", "inside": inside}


def save_or_say(folder: Path, state: TrainState, said: list[str], ranks: Communicator) -> None:
    try:
        save(folder, state, ranks)
    except NotSaved as error:
        said.append(f"{error}")


def save_in_thread(
    saver: CheckpointSaver, state: TrainState, said: list[str], ranks: Communicator
) -> None:
    """Save in the thread of a saver, which says what failed, and train on."""
    state.step += 1
    set_values(state, float(state.step))
    saver.save(state)
    set_values(state, -1.0)
    ranks.all_reduce(torch.ones(5))
    saver.poll(wait=True)


def on_a_full_disk(folder: Path, pages: int, ranks: Communicator, *, threaded: bool) -> list[str]:
    """Fill the disk but for some pages, save, free it and save again; return what was said."""
    state, said = resumed(folder, ranks), list[str]()
    write = partial(save_or_say, folder)
    with ExitStack() as held:
        if threaded:
            saver = held.enter_context(CheckpointSaver(run_of(folder, said, ranks), state))
            write = partial(save_in_thread, saver)
        fill_and_save(folder, pages, partial(write, state, said, ranks), ranks)
    return said


def fill_and_save(
    folder: Path, pages: int, write: Callable[[], object], ranks: Communicator
) -> None:
    """Save before the disk is full, while it is, and when it is free again."""
    write()
    real, filler = shutil.disk_usage, folder.parent / "filler"
    if ranks.is_main_process:
        free = real(folder).free - pages * 4096
        filler.write_bytes(bytes(max(0, free // 4096 * 4096)))
    ranks.all_gather(None)
    # The check before the save does not see it.
    shutil.disk_usage = lambda path: real(path)._replace(total=0)
    write()
    ranks.all_gather(None)
    filler.unlink(missing_ok=True)
    write()


def main() -> None:
    torch.set_num_threads(1)
    what, folder, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if what in ("fill", "fill-async"):
        said = on_ranks(2, partial(on_a_full_disk, folder, number, threaded=what == "fill-async"))
        left = sorted(path.name for path in folder.iterdir())
        print(json.dumps({"said": said, "left": left}))
        return
    folder.mkdir(parents=True)
    draws = random.Random(int(sys.argv[4]))
    for each in range(number):
        print(json.dumps(killed_round(folder, each, draws)), flush=True)


if __name__ == "__main__":
    main()
