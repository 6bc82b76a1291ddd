"""What each rank of tests/jobs/test_train_ranks.py does; some of it also one process alone.

`python -m torch.distributed.run --nproc-per-node 2 -m tests.jobs.ranked_runs FOLDER two`
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from mae.config.run import FinetuneConfig, MixConfig, OptimConfig, PretrainConfig
from mae.data.batching.batch import Batch
from mae.errors import DataError, Stopped
from mae.jobs import finetune as finetuning
from mae.jobs import pretrain as pretraining
from mae.train import sharding
from mae.train.measure import seconds_of_steps
from mae.train.step import pretraining_loss
from tests.jobs.conftest import TINY
from tests.jobs.kill_storm import CONFIG, images

# The tests bound the rounding of float32; "auto" is bf16 on some processors.
PRETRAIN = replace(CONFIG, steps=40, save_every_steps=50, precision="float32")
ELASTIC = replace(CONFIG, steps=18, precision="float32")  # three epochs of 48 of 50 images
FINETUNE = FinetuneConfig(
    model=TINY,
    steps=40,
    batch=8,
    optim=OptimConfig(lr=0.02, betas=(0.9, 0.999)),
    layer_decay=0.8,
    drop_path=0.3,
    erase=0.25,
    ema=0.9,
    mix=MixConfig(mixup=0.8, cutmix=1.0, smoothing=0.1),
    device="cpu",
    precision="float32",
    threads=1,
    workers=0,
    save_every_steps=50,
    log_every_steps=1,
)
SHARDED = replace(PRETRAIN, strategy="fsdp")
BRIEF = replace(SHARDED, steps=12)
HALF = replace(PRETRAIN, steps=10, precision="bf16")
MUON = replace(
    PRETRAIN,
    steps=6,
    optim=OptimConfig(name="muon", lr=0.02, clip_norm=0.5),
    keep_checkpoints=False,
)
PART = replace(
    FINETUNE, steps=6, batch=7, micro_batch=3, checkpoint_every=1, train_blocks=1,
    optim=OptimConfig(name="lars", lr=0.5),
)  # fmt: skip
"""The last block, in two micro-batches on rank 0 and one on rank 1."""
SPOILED = 13
"""Id of the image whose loss is not a number in a spoiled run."""
RANK = int(os.environ.get("RANK", "0"))


def spoiled_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Give NaN for the micro-batch that holds one image."""
    loss = pretraining_loss(model, batch)
    return loss * float("nan") if SPOILED in batch.ids.tolist() else loss


def pretrain(out: Path, config: PretrainConfig = PRETRAIN, *, spoil: bool = False) -> None:
    pretraining.pretraining_loss = spoiled_loss if spoil else pretraining_loss
    pretraining.pretrain(config, data=images(), out=out, quiet=True)


def finetune(out: Path, config: FinetuneConfig = FINETUNE) -> None:
    finetuning.finetune(config, data=out.parent / "classes", out=out, quiet=True)


def elastic(out: Path, *, start: int, stop_after: int | None) -> None:
    """Train a part of a run; the last rank signals itself, and no other, after some steps.

    What each rank saw and how it ended is kept in OUT-START-RANK.json.
    """
    seen: list[list[int]] = []
    last = int(os.environ.get("WORLD_SIZE", "1")) - 1

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        seen.append(batch.ids.tolist())
        if len(seen) == stop_after and last == RANK:
            os.kill(os.getpid(), signal.SIGTERM)
        return pretraining_loss(model, batch)

    pretraining.pretraining_loss = loss
    code = 0
    try:
        pretraining.pretrain(ELASTIC, data=images(), out=out, quiet=True)
    except Stopped as stopped:
        code = stopped.exit_code
    kept = sorted(path.name for path in (out / "checkpoints").glob("*"))
    state = json.loads((out / "run.json").read_bytes())["state"]
    found = {"seen": seen, "code": code, "kept": kept, "state": state}
    out.with_name(f"{out.name}-{start}-{RANK}.json").write_text(json.dumps(found))


def stopped(out: Path, config: PretrainConfig, *, after: int) -> None:
    """Train a run that the last rank is asked to stop after some steps, and train it to its end."""
    calls: list[Batch] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        calls.append(batch)
        if len(calls) == after and RANK:
            os.kill(os.getpid(), signal.SIGTERM)
        return pretraining_loss(model, batch)

    pretraining.pretraining_loss = loss
    try:
        pretraining.pretrain(config, data=images(), out=out, quiet=True)
    except Stopped as error:
        out.with_name(f"{out.name}-{RANK}").write_text(f"{error.exit_code} {len(calls)}")
    pretrain(out, config)


def written_again(run: Path, out: Path, config: PretrainConfig) -> None:
    """Copy a finished run as it was after its last checkpoint, and let it write its weights."""
    if RANK == 0:
        shutil.copytree(run, out)
        shutil.rmtree(out / "weights")
        record = json.loads((out / "run.json").read_bytes())
        (out / "run.json").write_text(json.dumps(record | {"finished": False}))
    pretrain(out, config)


def sharded(folder: Path) -> None:
    """Train with parts of the parameters on each rank, and beside it as DDP does."""
    pretrain(folder / "sharded", SHARDED)
    finetune(folder / "sharded-tuned", replace(FINETUNE, strategy="fsdp"))
    for name, strategy in (("two", "ddp"), ("sharded", "fsdp")):
        pretrain(folder / f"{name}-half", replace(HALF, strategy=strategy))
        pretrain(folder / f"{name}-muon", replace(MUON, strategy=strategy))
        finetune(folder / f"{name}-part", replace(PART, strategy=strategy))
    pretrain(folder / "brief", BRIEF)
    pretrain(folder / "brief-spoiled", BRIEF, spoil=True)
    stopped(folder / "brief-stopped", BRIEF, after=5)
    written_again(folder / "brief", folder / "brief-by-ddp", replace(BRIEF, strategy="ddp"))
    written_again(folder / "two", folder / "two-by-fsdp", SHARDED)
    fail_on_one(folder, "sharded-failed", SHARDED)
    sharding.seconds_of_steps = partial(seconds_of_steps, at_least=(2, 0.1))
    timed = replace(SHARDED, steps=None, minutes=0.01, micro_batch="auto")
    pretrain(folder / "sharded-timed", timed)


def fail_on_one(folder: Path, name: str = "failed", config: PretrainConfig = PRETRAIN) -> None:
    """Raise an error on the last rank in its second step; keep what each rank raises."""
    calls: list[Batch] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        calls.append(batch)
        if len(calls) == 2 and RANK == 1:
            raise DataError("of rank 1")
        return pretraining_loss(model, batch)

    pretraining.pretraining_loss = loss
    try:
        pretraining.pretrain(config, data=images(), out=folder / name, quiet=True)
    except DataError as error:
        (folder / f"{name}-{RANK}").write_text(f"{error}")


def main(folder: Path, ranks: str) -> None:
    torch.set_num_threads(1)
    if ranks == "two":
        pretrain(folder / "two")
        pretrain(folder / "two-spoiled", spoil=True)
        finetune(folder / "two-tuned")
        elastic(folder / "elastic", start=1, stop_after=4)
        fail_on_one(folder)
        sharded(folder)
    else:
        pretrain(folder / "three")
        elastic(folder / "elastic", start=3, stop_after=None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
