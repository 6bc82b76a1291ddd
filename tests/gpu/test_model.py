"""The model on a GPU is the model on a CPU."""

from __future__ import annotations

import shutil
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from mae.evaluation.features import encoder_features
from mae.evaluation.reconstruction import hidden_psnr
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.masking import random_masking
from mae.parallel.ddp import share_batch_norms
from mae.train.step import pretraining_loss
from tests.gpu.small import MODEL, small_batches
from tests.model.tiny import batch, scrambled

# Of the largest value: what float32 sums in another order differ by.
EXACT, GRADIENTS = 1e-5, 1e-4


def both(generator: torch.Generator) -> tuple[MaskedAutoencoder, MaskedAutoencoder]:
    """Give the same model on a CPU and on the GPU."""
    here = scrambled(MaskedAutoencoder(MODEL), generator)
    there = MaskedAutoencoder(MODEL)
    there.load_state_dict(here.state_dict())
    return here, there.cuda()


def assert_near(found: Tensor, expected: Tensor, tolerance: float, name: str = "") -> None:
    assert found.is_cuda and found.shape == expected.shape, name
    difference = (found.float().cpu() - expected).abs().max()
    assert difference <= tolerance * expected.abs().max(), name


def test_loss_and_predictions_are_those_of_a_cpu(generator: torch.Generator) -> None:
    here, there = both(generator)
    images, noise = batch(generator, MODEL, images=7)

    found = there(images.cuda(), noise=noise.cuda())

    expected = here(images, noise=noise)
    assert_near(found.loss, expected.loss, EXACT)
    assert torch.equal(found.mask.cpu(), expected.mask)
    rebuilt = there.reconstruct(images.cuda(), noise=noise.cuda())
    for value, wanted in zip(rebuilt, here.reconstruct(images, noise=noise), strict=True):
        assert_near(value, wanted.float(), EXACT)


def test_gradients_are_those_of_a_cpu(generator: torch.Generator) -> None:
    here, there = both(generator)
    images, noise = batch(generator, MODEL, images=7)

    here(images, noise=noise).loss.backward()
    there(images.cuda(), noise=noise.cuda()).loss.backward()

    expected = {name: p.grad for name, p in here.named_parameters() if p.requires_grad}
    found = {name: p.grad for name, p in there.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient is not None and expected[name] is not None
        assert_near(gradient, expected[name], GRADIENTS, name)


@pytest.mark.parametrize(("half", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 5e-3)])
def test_half_precision_loses_about_what_float32_loses(
    generator: torch.Generator, half: torch.dtype, tolerance: float
) -> None:
    here, there = both(generator)
    stored = small_batches(1)[0]

    with torch.autocast("cuda", half):
        found = pretraining_loss(there, stored.to(torch.device("cuda")))

    assert found.dtype == torch.float32  # the error is taken in the target's precision
    assert_near(found, pretraining_loss(here, stored), tolerance)


@pytest.mark.parametrize("values", [2, 5, 2**23])
def test_ties_of_the_noise_are_broken_as_on_a_cpu(generator: torch.Generator, values: int) -> None:
    noise = torch.randint(0, values, (64, 196), generator=generator) / values

    there, here = random_masking(noise.cuda(), num_keep=49), random_masking(noise, num_keep=49)

    for found, expected in zip(there, here, strict=True):
        assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("pool", ["mean", "cls", "grid", "tokens"])
def test_features_are_those_of_a_cpu(generator: torch.Generator, pool: str) -> None:
    here, there = both(generator)
    images = small_batches(1)[0].images

    found = there.encoder.encode(images.cuda(), pool=pool)  # type: ignore[arg-type]

    assert_near(found, here.encoder.encode(images, pool=pool), EXACT)  # type: ignore[arg-type]


def test_evaluations_take_images_from_the_host(generator: torch.Generator) -> None:
    here, there = both(generator)
    stored = small_batches(2)
    images, pairs = [b.images for b in stored], [(b.images, b.noise) for b in stored]

    features = encoder_features(there.encoder, images, pools=["mean"])["mean"]
    psnr = hidden_psnr(there, pairs).psnr

    expected = encoder_features(here.encoder, images, pools=["mean"])["mean"]
    assert abs(features - expected).max() <= EXACT * abs(expected).max()
    assert psnr == pytest.approx(hidden_psnr(here, pairs).psnr, abs=1e-3)


@pytest.mark.skipif(
    find_spec("triton") is None or not (shutil.which("cc") or shutil.which("gcc")),
    reason="torch.compile needs triton and a C compiler",
)
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_forward_is_the_plain_one(generator: torch.Generator) -> None:
    _, there = both(generator)
    images, noise = (value.cuda() for value in batch(generator, MODEL, images=7))

    found = torch.compile(there)(images, noise=noise)
    found.loss.backward()
    gradients = {name: p.grad for name, p in there.named_parameters() if p.grad is not None}
    there.zero_grad(set_to_none=True)

    expected = there(images, noise=noise)
    expected.loss.backward()
    assert_near(found.loss.detach(), expected.loss.detach().cpu(), EXACT)
    assert torch.equal(found.mask, expected.mask)
    for name, gradient in gradients.items():
        assert_near(gradient, there.get_parameter(name).grad.cpu(), GRADIENTS, name)  # type: ignore


def test_batch_norms_shared_by_ranks_keep_parameters_and_names() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)).cuda()
    before = dict(model.named_parameters())

    share_batch_norms(model)

    assert isinstance(model[1], torch.nn.SyncBatchNorm)
    assert all(p is before[name] for name, p in model.named_parameters())
