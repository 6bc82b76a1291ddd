"""A run as a SLURM job: signalled, saved, requeued, and ended as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from mae.cli.main import main
from tests.jobs.fake_slurm import install

WORDS = (
    "--image-size 16 --model.patch-size 4 --model.width 24 --model.depth 2 --model.num-heads 3 "
    "--model.decoder-width 16 --model.decoder-depth 1 --model.decoder-heads 2 --batch 8 "
    "--device cpu --threads 1 --workers 0 --log-every-steps 1 --save-every-steps 10 --steps 60"
).split()


def wait_for(is_done: Callable[[], bool], *, log: Path) -> None:
    deadline = time.monotonic() + 120
    while not is_done():
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_job_is_signalled_saved_and_requeued_and_ends_as_if_undisturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm, out = tmp_path / "slurm", tmp_path / "a run"
    slurm.mkdir()
    install(slurm)
    monkeypatch.setenv("PATH", str(slurm), prepend=os.pathsep)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    images = tmp_path / "images.npy"
    np.save(images, np.random.default_rng(1).integers(0, 256, (50, 16, 24, 3), dtype=np.uint8))
    words = ["pretrain", "demo", "--data", str(images), *WORDS]
    # One process with two micro-batches makes the sums of two ranks, see test_train_ranks.py.
    assert main([*words, "--quiet", "--micro-batch", "4", "--out", str(tmp_path / "whole")]) == 0

    assert main([*words, "--out", str(out), "--slurm", "tasks=2"]) == 0

    log, codes = tmp_path / "a run-4242.log", slurm / "codes"
    wait_for(lambda: any((out / "checkpoints").glob("step-*")), log=log)
    os.kill(int((slurm / "step").read_text()), signal.SIGUSR1)
    wait_for(lambda: codes.exists() and codes.read_text().count("\n") == 2, log=log)
    text = log.read_text()
    assert codes.read_text() == "75\n0\n", text
    assert text.count("mae: stopped at step") == 1 and "; to resume: mae pretrain" in text
    assert "slurm" not in text.partition("to resume: ")[2].partition("\n")[0]
    record = json.loads((out / "run.json").read_text())
    assert record["world_sizes"] == [2, 2] and record["finished"]
    ours, whole = (
        load_file(run / "weights" / "model.safetensors") for run in (out, tmp_path / "whole")
    )
    assert all(ours[name].equal(whole[name]) for name in whole) and ours.keys() == whole.keys()
