"""The loop against a loop written out, and what it does when numbers go wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from mae.config.run import FitConfig, ModelConfig, OptimConfig, PixelConfig
from mae.data.batching.batch import Batch
from mae.errors import TrainingError
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.create import create
from mae.runs.state import TrainState
from mae.train.fit import EveryNSteps, fit
from mae.train.optim.parameter_groups import create_optimizer
from mae.train.schedule import rate_at
from mae.train.step import OptimiserStep, pretraining_loss

B, C, H, W, P = 6, 3, 12, 20, 4
MODEL = ModelConfig(
    image_size=(H, W),
    patch_size=P,
    channels=C,
    width=24,
    depth=2,
    num_heads=3,
    decoder_width=16,
    decoder_depth=1,
    decoder_heads=2,
    pixels=PixelConfig(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
)
CONFIG = FitConfig(
    batch=B, optim=OptimConfig(lr=0.05, warmup_epochs=40, weight_decay=0.05), precision="float32"
)
CPU = torch.device("cpu")


def make_batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(3)
    return [
        Batch(
            torch.randint(0, 256, (B, C, H, W), dtype=torch.uint8, generator=generator),
            torch.rand(B, 15, generator=generator),
            torch.arange(B) + i * B,
            torch.full((B,), -1),
        )
        for i in range(count)
    ]


def new_state(config: FitConfig = CONFIG) -> TrainState:
    model = create(MODEL, seed=5)
    return TrainState(model=model, optimizer=create_optimizer(model, config.optim))


def run(state: TrainState, batches: list[Batch], config: FitConfig = CONFIG, **options: object):
    num_steps = len(batches)
    fit(
        state,
        batches,
        OptimiserStep(loss=pretraining_loss, config=config, device=CPU),
        num_steps=num_steps,
        rate=lambda step: rate_at(step, num_steps=num_steps, config=config, batch=B),
        **options,  # type: ignore[arg-type]
    )


def images64(batch: Batch) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    return (batch.images.double() / 255 - mean) / std


def loss64(model: nn.Module, batch: Batch) -> torch.Tensor:
    return model(images64(batch), noise=batch.noise).loss


def weights(state: TrainState) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in state.model.parameters()])


def written_out_loss(model: MaskedAutoencoder, images: torch.Tensor, noise: torch.Tensor):
    """The loss as the paper and the specification say it, sharing only the modules' weights."""
    encoder, decoder, h, w = model.encoder, model.decoder, H // P, W // P
    L, K = h * w, 3
    patches = torch.stack(
        [
            images[:, :, r * P : (r + 1) * P, c * P : (c + 1) * P].permute(0, 2, 3, 1).flatten(1)
            for r in range(h)
            for c in range(w)
        ],
        dim=1,
    )
    tokens = torch.nn.functional.conv2d(
        images, encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias, stride=P
    )
    tokens = tokens.flatten(2).transpose(1, 2) + encoder.pos_embed[:, 1:]
    shuffle = noise.argsort(dim=1)
    restore = shuffle.argsort(dim=1)
    rows = torch.arange(B)[:, None]
    x = torch.cat([encoder.cls_token.expand(B, 1, -1), tokens[rows, shuffle[:, :K]]], dim=1)
    for block in encoder.blocks:
        x = block(x)
    x = decoder.embed(encoder.norm(x))
    hidden = decoder.mask_token.expand(B, L - K, -1)
    y = torch.cat([x[:, 1:], hidden], dim=1)[rows, restore]
    y = torch.cat([x[:, :1], y], dim=1) + decoder.pos_embed
    for block in decoder.blocks:
        y = block(y)
    pred = decoder.pred(decoder.norm(y))[:, 1:]
    mean, var = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    target = (patches - mean) / (var + 1e-6) ** 0.5
    mask = torch.ones(B, L, dtype=images.dtype)
    mask[rows, shuffle[:, :K]] = 0
    return (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum()


def test_twenty_steps_equal_a_loop_written_out() -> None:
    """In float64, so that only the mathematics can differ."""
    batches = [b._replace(noise=b.noise.double()) for b in make_batches(20)]
    ours = new_state()
    ours.model.double()
    theirs = create(MODEL, seed=5).double()
    decayed = [p for p in theirs.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in theirs.parameters() if p.requires_grad and p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
    )

    num_steps, peak = 20, 0.05 * B / 256
    fit(
        ours,
        batches,
        OptimiserStep(loss=loss64, config=CONFIG, device=CPU),
        num_steps=num_steps,
        rate=lambda step: rate_at(step, num_steps=num_steps, config=CONFIG, batch=B),
    )
    for step, batch in enumerate(batches):
        warmup = 40 / 400 * num_steps
        if step < warmup:
            lr = peak * step / warmup
        else:
            lr = peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        written_out_loss(theirs, images64(batch), batch.noise).backward()
        optimizer.step()

    expected = torch.cat([p.detach().flatten() for p in theirs.parameters()])
    torch.testing.assert_close(weights(ours), expected, rtol=0, atol=1e-9)


def test_micro_batches_of_unequal_size_give_the_step_of_the_whole_batch() -> None:
    """In float64: Adam divides by the gradient's size and would blow float32's rounding up."""
    ends = []
    for micro_batch in (None, 4):  # 4 and 2 images
        state, config = new_state(), replace(CONFIG, micro_batch=micro_batch)
        state.model.double()
        fit(
            state,
            make_batches(3),
            OptimiserStep(loss=loss64, config=config, device=CPU),
            num_steps=3,
            rate=lambda step: 1e-3,
        )
        ends.append(weights(state))

    torch.testing.assert_close(*ends, rtol=0, atol=1e-10)


def test_the_threads_that_compute_micro_batches_change_no_bit() -> None:
    before, ends = torch.get_num_threads(), []
    try:
        for threads in (1, 3):  # three micro-batches, of 2, 2 and 1 images
            torch.set_num_threads(threads)
            state, config = new_state(), replace(CONFIG, micro_batch=2, batch=5)
            step = OptimiserStep(loss=pretraining_loss, config=config, device=CPU)
            with step.side_by_side():
                assert torch.get_num_threads() == 1
                for batch in make_batches(3):
                    step(state, next(batch.split(5)), lr=1e-3)
            assert torch.get_num_threads() == threads
            ends.append(weights(state))
    finally:
        torch.set_num_threads(before)

    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_what_fails_in_a_micro_batch_fails_the_step_and_threads_come_back() -> None:
    def fail(model: nn.Module, batch: Batch) -> torch.Tensor:
        raise FloatingPointError

    before, state, config = torch.get_num_threads(), new_state(), replace(CONFIG, micro_batch=2)
    step = OptimiserStep(loss=fail, config=config, device=CPU)

    with pytest.raises(FloatingPointError), step.side_by_side():
        step(state, next(iter(make_batches(1))), lr=1e-3)

    assert torch.get_num_threads() == before


def test_a_bad_step_moves_position_and_rate_but_no_parameter() -> None:
    state = new_state()
    batches = make_batches(3)
    seen: list[tuple[int, bool]] = []
    moments: list[torch.Tensor] = []

    def spoil_second(model: nn.Module, batch: Batch) -> torch.Tensor:
        loss = pretraining_loss(model, batch)
        return loss * (math.nan if batch.ids[0] == B else 1)

    fit(
        state,
        batches,
        OptimiserStep(loss=spoil_second, config=CONFIG, device=CPU),
        num_steps=3,
        rate=lambda step: 0.01,
        callbacks=[EveryNSteps(1, lambda state, metrics: moments.append(weights(state)))],
        on_step_end=lambda batch, metrics: seen.append((int(batch.ids[0]), metrics.finite)),
    )

    assert seen == [(0, True), (B, False), (2 * B, True)]
    assert torch.equal(moments[0], moments[1])
    assert not torch.equal(moments[1], moments[2])
    assert (state.step, state.bad_in_a_row) == (3, 0)


def test_five_bad_steps_in_a_row_stop_the_run() -> None:
    state = new_state()

    def never_finite(model: nn.Module, batch: Batch) -> torch.Tensor:
        return pretraining_loss(model, batch) * math.inf

    with pytest.raises(TrainingError, match="5 steps in a row, the last at step 5"):
        fit(
            state,
            make_batches(7),
            OptimiserStep(loss=never_finite, config=CONFIG, device=CPU),
            num_steps=7,
            rate=lambda step: 0.01,
        )


def test_stopping_is_asked_after_every_step() -> None:
    state = new_state()

    run(state, make_batches(5), stop=lambda: state.step == 2)

    assert state.step == 2


def test_cadences_are_due_at_their_steps_and_at_the_last() -> None:
    acted: list[int] = []

    callbacks = [EveryNSteps(3, lambda state, metrics: acted.append(state.step))]
    run(new_state(), make_batches(7), callbacks=callbacks)

    assert acted == [3, 6, 7]


def test_the_first_step_is_due_where_asked_but_not_of_a_resume() -> None:
    acted: list[int] = []
    callback = EveryNSteps(3, lambda state, metrics: acted.append(state.step), first=True)

    state = new_state()
    run(state, make_batches(7), callbacks=[callback])
    state.step = 4
    run(state, make_batches(2), callbacks=[callback])

    assert acted == [1, 3, 6, 7, 6]


def test_clipping_bounds_the_gradient_that_is_applied() -> None:
    config = replace(CONFIG, optim=replace(CONFIG.optim, clip_norm=1e-3))
    state = new_state(config)

    run(state, make_batches(1), config)

    norm = torch.stack([p.grad.norm() for p in state.model.parameters() if p.requires_grad]).norm()
    torch.testing.assert_close(norm.item(), 1e-3, rtol=1e-3, atol=0)


@pytest.mark.parametrize("share", [0.5, 0.985, 0.995, 1.0, 1.0000005, 1.005, 1.02, 2.0])
def test_clipping_is_torchs_to_the_bit_on_both_sides_of_the_limit(share: float) -> None:
    free = new_state()
    run(free, make_batches(1))
    gradients = [p.grad for p in free.model.parameters() if p.grad is not None]
    limit = share * torch.nn.utils.get_total_norm(gradients).item()
    clipped = new_state()

    run(clipped, make_batches(1), replace(CONFIG, optim=replace(CONFIG.optim, clip_norm=limit)))

    torch.nn.utils.clip_grad_norm_(free.model.parameters(), limit)
    for own, theirs in zip(clipped.model.parameters(), free.model.parameters(), strict=True):
        assert own.grad is theirs.grad is None or torch.equal(own.grad, theirs.grad)


def test_bf16_arithmetic_keeps_float32_weights_and_stays_close() -> None:
    exact, rough = new_state(), new_state()

    run(exact, make_batches(2))
    run(rough, make_batches(2), replace(CONFIG, precision="bf16"))

    assert weights(rough).dtype == torch.float32
    assert (weights(rough) - weights(exact)).abs().max() < 1e-2


def names_by_decay(*, decay_tokens: bool) -> Iterator[set[str]]:
    model = create(MODEL)
    names = {id(p): name for name, p in model.named_parameters()}
    for group in create_optimizer(model, OptimConfig(decay_tokens=decay_tokens)).param_groups:
        yield {names[id(p)] for p in group["params"]}


def test_tokens_are_decayed_as_in_the_published_code_unless_told_otherwise() -> None:
    decayed, kept = names_by_decay(decay_tokens=True)
    decayed_without, kept_with = names_by_decay(decay_tokens=False)

    tokens = {"encoder.cls_token", "decoder.mask_token"}
    assert tokens <= decayed
    assert decayed_without == decayed - tokens
    assert kept_with == kept | tokens


def test_norms_biases_and_positions_are_never_decayed() -> None:
    decayed, kept = names_by_decay(decay_tokens=True)

    assert not [n for n in decayed if n.endswith("bias") or "norm" in n or "pos_embed" in n]
    assert not [n for n in kept if "pos_embed" in n]  # frozen: in neither
    assert "encoder.norm.weight" in kept and "decoder.pred.bias" in kept
