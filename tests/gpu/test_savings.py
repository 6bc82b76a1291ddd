"""What a GPU computes twice, compiles, rounds or tries leaves the numbers of a run as they are."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mae.config.objective import ObjectiveConfig
from mae.config.run import OptimConfig, PretrainConfig
from mae.config.sizes import model_config
from mae.data.batching.batch import Batch
from mae.jobs.pretrain import pretrain
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.costs import activation_bytes
from mae.model.create import create
from mae.planning.hardware import has_bf16
from mae.train.measure import StepRecipe
from mae.train.micro_batch import fits_here
from mae.train.optim.muon import Muon
from mae.train.step import pretraining_loss
from tests.gpu.small import CONFIG, COUNT, MODEL, small_batches, state_of
from tests.gpu.test_model import GRADIENTS, assert_near
from tests.model.costed import checkpointed
from tests.model.tiny import batch

DEVICE = torch.device("cuda")
PICTURES = np.random.default_rng(0).integers(0, 256, (40, 24, 32, 3), dtype=np.uint8)
RUN = PretrainConfig(
    model=MODEL, batch=10, micro_batch=4, steps=6, optim=OptimConfig(lr=0.01, warmup_epochs=0),
    device="cuda", log_every_steps=1, workers=0, threads=1,
)  # fmt: skip
needs_a_compiler = pytest.mark.skipif(
    find_spec("triton") is None or not (shutil.which("cc") or shutil.which("gcc")),
    reason="torch.compile needs triton and a C compiler",
)


def record_of(out: Path) -> dict[str, object]:
    return json.loads((out / "run.json").read_text())


def losses_of(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


def gradients(model: MaskedAutoencoder, images: torch.Tensor, noise: torch.Tensor) -> nn.Module:
    model.zero_grad(set_to_none=True)
    model(images, noise=noise).loss.backward()
    return model


def test_muon_steps_as_on_a_cpu_but_for_its_rounding(generator: torch.Generator) -> None:
    here = nn.Parameter(torch.randn(12, 7, generator=generator))
    there = nn.Parameter(here.detach().cuda())
    begun = here.detach().clone()
    here.grad = torch.randn(12, 7, generator=generator)
    there.grad = here.grad.cuda()

    for parameter in (here, there):
        Muon([{"params": [parameter], "parts": 1}], lr=0.1, fused=True).step()

    assert (there.cpu() - here).norm() < 0.03 * (here - begun).norm()


def test_blocks_that_are_computed_again_give_the_gradients_of_those_that_are_kept(
    generator: torch.Generator,
) -> None:
    kept, again = create(MODEL, seed=5).cuda(), create(MODEL, seed=5).cuda()
    images, noise = (value.cuda() for value in batch(generator, MODEL, images=7))

    gradients(checkpointed(again, every=1), images, noise)

    for name, parameter in gradients(kept, images, noise).named_parameters():
        if parameter.grad is not None:
            found = again.get_parameter(name).grad
            assert found is not None
            assert_near(found, parameter.grad.cpu(), GRADIENTS, name)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("every", [None, 1, 4])
def test_a_forward_pass_keeps_what_is_planned(every: int | None, *, half: bool) -> None:
    config, count = model_config("vit-s/16"), 32
    model = checkpointed(create(config).cuda(), every=every)
    shape = (count, config.channels, *config.image_size)
    stored = torch.zeros(shape, dtype=torch.uint8, device=DEVICE)
    noise = torch.rand(count, config.num_patches, device=DEVICE)

    def kept(images: int) -> int:
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.bfloat16, half):
            loss = model(model.normalize(stored[:images]), noise=noise[:images]).loss
        held = torch.cuda.memory_allocated() - before
        loss.backward()
        model.zero_grad(set_to_none=True)
        return held

    kept(count)
    found = (kept(count) - kept(count // 2)) / (count - count // 2)

    assert found == pytest.approx(
        activation_bytes(
            config, ObjectiveConfig(), half=half, on_cpu=False, checkpoint_every=every
        ).kept,
        rel=0.15,
    )


def test_a_run_takes_bf16_where_the_card_multiplies_it(tmp_path: Path) -> None:
    run = pretrain(replace(RUN, compile=False), data=PICTURES, out=tmp_path, quiet=True)

    own = torch.cuda.get_device_capability() >= (8, 0)
    assert has_bf16(DEVICE) == own
    assert run.config.precision == ("bf16" if own else "float32")
    assert record_of(tmp_path)["config"]["precision"] == run.config.precision  # type: ignore[index]
    assert torch.get_float32_matmul_precision() == "highest"


def crowded(model: nn.Module, given: Batch) -> torch.Tensor:
    """Ask for more memory than any card has where there are more than four images."""
    torch.empty(10**15 if len(given.ids) > 4 else 1, dtype=torch.uint8, device=DEVICE)
    return pretraining_loss(model, given)


def test_what_does_not_fit_is_found_out_and_its_memory_given_back() -> None:
    state, (stored,) = state_of("cuda"), small_batches(1)
    before = torch.cuda.memory_allocated()

    tried = [fits_here(CONFIG, state, stored, StepRecipe(crowded), n) for n in (COUNT, 5, 4, 1)]

    assert tried == [False, False, True, True]
    assert torch.cuda.memory_allocated() <= before + 2**20  # workspaces of the libraries stay
    assert not state.optimizer.state
    assert all(p.grad is None for p in state.model.parameters())


def test_a_small_batch_fits_in_one_pass(tmp_path: Path) -> None:
    auto = replace(RUN, micro_batch="auto", compile=False)

    pretrain(auto, data=PICTURES, out=tmp_path, quiet=True)

    assert record_of(tmp_path)["micro_batch"] == 10


@needs_a_compiler
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("every", [None, 1])
def test_a_compiled_run_loses_what_a_plain_one_does(
    tmp_path: Path, every: int | None, capfd: pytest.CaptureFixture[str]
) -> None:
    """In micro-batches of 4, 4 and 2."""
    whole = replace(RUN, precision="float32", checkpoint_every=every)

    pretrain(whole, data=PICTURES, out=tmp_path / "compiled")
    pretrain(replace(whole, compile=False), data=PICTURES, out=tmp_path / "plain", quiet=True)

    assert "compile: failed" not in capfd.readouterr().err
    found, expected = losses_of(tmp_path / "compiled"), losses_of(tmp_path / "plain")
    assert len(found) == 6 and found == pytest.approx(expected, rel=1e-3)
