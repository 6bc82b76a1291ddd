"""Runs, weights and packs of version 0.1.0 open; its stopped runs end where it would have ended."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mae
from mae.cli.main import main
from mae.config.run import FinetuneConfig, PretrainConfig
from mae.config.serialize import from_dict
from mae.data.sources.open import open_source
from mae.runs.directory import read_record
from tests.jobs.older.make import COUNT, images

OLDER = Path(__file__).parent / "older"


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """Copy the files to a folder where runs may go on, and name it in their records."""
    root = tmp_path / "older"
    shutil.copytree(OLDER, root)
    for record in root.glob("*/run.json"):
        record.write_text(record.read_text().replace("ROOT", str(root)))
    return root


def _config(kind: type, run: Path) -> object:
    record = read_record(run)
    assert record is not None
    return from_dict(kind, record["config"], where=str(run))


def _largest_difference(run: Path, finished: Path) -> float:
    ours, theirs = (load_file(path / "weights" / "model.safetensors") for path in (run, finished))
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.mark.parametrize("name", ["pretrain", "pretrain-muon"])
def test_stopped_pretraining_of_0_1_ends_in_the_weights_that_0_1_made(
    older: Path, name: str
) -> None:
    run = older / f"{name}-stopped"
    config = _config(PretrainConfig, run)
    assert isinstance(config, PretrainConfig)
    done = mae.pretrain(config, data=images(), out=run, quiet=True)
    assert done.resumed
    assert done.num_steps == 12
    assert _largest_difference(run, older / name) < 1e-5


def test_a_run_without_held_out_images_is_resumed_by_a_recipe_that_holds_some_out(
    older: Path,
) -> None:
    config = _config(PretrainConfig, older / "pretrain-stopped")
    assert isinstance(config, PretrainConfig) and config.held_out == 0

    asked = replace(config, held_out=0.05)
    done = mae.pretrain(asked, data=images(), out=older / "pretrain-stopped", quiet=True)

    assert done.resumed and done.config.held_out == 0


def test_stopped_finetuning_of_0_1_ends_in_the_weights_that_0_1_made(older: Path) -> None:
    run = older / "finetune-stopped"
    config = _config(FinetuneConfig, run)
    assert isinstance(config, FinetuneConfig)
    done = mae.finetune(
        config, data=older / "pack", weights=older / "pretrain", out=run, quiet=True
    )
    assert done.resumed
    assert _largest_difference(run, older / "finetune") < 1e-5


def test_finished_runs_of_0_1_are_returned_as_they_are(older: Path) -> None:
    run = older / "pretrain"
    config = _config(PretrainConfig, run)
    assert isinstance(config, PretrainConfig)
    done = mae.pretrain(config, data=images(), out=run, quiet=True)
    assert done.resumed
    assert _largest_difference(run, OLDER / "pretrain") == 0
    config = _config(FinetuneConfig, older / "finetune")
    assert isinstance(config, FinetuneConfig)
    tuned = mae.finetune(
        config,
        data=older / "pack",
        weights=older / "pretrain",
        out=older / "finetune",
        quiet=True,
    )
    assert (tuned.classes, tuned.train + tuned.test) == (3, COUNT)


def test_weights_of_0_1_load_with_their_mask_ratio_and_eps(older: Path) -> None:
    model = mae.load(older / "pretrain" / "weights")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, 8, 12, generator=generator)
    output = model(pixels, noise=torch.rand(2, 6, generator=generator))
    assert output.mask.sum(dim=1).tolist() == [3, 3]  # half of 6 patches, not three quarters
    flat = torch.full((1, 1, 48), 0.5)
    flat[..., 0] += 1e-2
    eps = 1e-5
    expected = (flat - flat.mean()) / (flat.var() + eps).sqrt()
    torch.testing.assert_close(model.target(flat), expected)
    assert mae.load_encoder(older / "pretrain").config.width == 8


def test_verbs_take_runs_of_0_1(older: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["report", str(older / "pretrain")],
        ["report", str(older / "finetune")],
        ["weights", "inspect", str(older / "pretrain")],
        ["evaluate", str(older / "finetune"), "--data", str(older / "pack"), "--quiet"],
        ["probe", "knn", str(older / "pretrain"), "--data", str(older / "pack"), "--k", "3"],
    ):
        assert main(words) == 0, capsys.readouterr().err


def test_packs_of_0_1_open(older: Path) -> None:
    source = open_source(older / "pack")
    assert len(source) == COUNT
    assert list(source.class_names) == ["a", "b", "c"]
