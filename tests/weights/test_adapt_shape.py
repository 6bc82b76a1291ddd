"""Weights for images of another size or channel count, against values worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.models._manipulate import adapt_input_conv
from torch import Tensor

from mae.config.run import ChannelRule, FinetuneConfig, ModelConfig, PixelConfig
from mae.errors import ConfigError, WeightsError
from mae.model.positions import sincos_positions
from mae.weights.adapt_shape import resize_prediction, resize_projection, resize_weights
from mae.weights.formats.native import save
from mae.weights.load import load
from mae.weights.start_from import initial_classifier, initial_model
from tests.model.tiny import batch, tiny_config, tiny_model

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "published.json").read_text())


def of_channels(config: ModelConfig, channels: int) -> ModelConfig:
    pixels = PixelConfig(mean=(0.5,) * channels, std=(0.25,) * channels)
    return replace(config, channels=channels, pixels=pixels)


def bicubic(table: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Resize a table 1 1+L D the way the published code is described: g g D as a image."""
    plane = table[0, 1:].reshape(*grid, -1).permute(2, 0, 1)[None]
    plane = F.interpolate(plane, size=size, mode="bicubic", align_corners=False)
    return torch.cat([table[0, :1], plane[0].flatten(1).T])[None]


# Three channels whose weights are 2, 3 and 7.
@pytest.mark.parametrize(
    ("rule", "channels", "expected"),
    [
        ("repeat", 1, [12]),
        ("repeat", 2, [2 + 7, 3]),
        ("repeat", 4, [1, 3, 7, 1]),
        ("repeat", 6, [1, 1.5, 3.5, 1, 1.5, 3.5]),
        ("repeat", 13, [0.4, 0.75, 1.75] * 4 + [0.4]),
        ("mean", 1, [12]),
        ("mean", 2, [6, 6]),
        ("mean", 4, [3, 3, 3, 3]),
        ("zero", 4, [2, 3, 7, 0]),
        ("zero", 13, [2, 3, 7] + [0] * 10),
    ],
)
def test_the_projection_follows_the_rule(
    rule: ChannelRule, channels: int, expected: list[float]
) -> None:
    weight = torch.tensor([2.0, 3.0, 7.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)

    made = resize_projection(weight, channels=channels, rule=rule)

    wanted = torch.tensor(expected, dtype=torch.float32).view(1, -1, 1, 1).expand(2, channels, 4, 4)
    torch.testing.assert_close(made, wanted)


@pytest.mark.parametrize("rule", ["repeat", "mean", "zero"])
def test_one_channel_made_three_shares_its_weight_or_keeps_it(rule: ChannelRule) -> None:
    made = resize_projection(torch.full((1, 1, 1, 1), 6.0), channels=3, rule=rule)

    assert made.flatten().tolist() == ([6, 0, 0] if rule == "zero" else [2, 2, 2])


# A head of 2 x 2 pixels whose value at pixel q and channel c is 10 q + c.
@pytest.mark.parametrize(
    ("rule", "channels", "of_pixel"),
    [
        ("repeat", 1, [1]),
        ("repeat", 2, [1, 1]),  # the mean of channels 0 and 2; channel 1
        ("repeat", 4, [0, 1, 2, 0]),
        ("mean", 4, [1, 1, 1, 1]),
    ],
)
def test_the_head_follows_the_rule_in_the_order_row_column_channel(
    rule: ChannelRule, channels: int, of_pixel: list[float]
) -> None:
    bias = torch.tensor([10.0 * q + c for q in range(4) for c in range(3)])

    made = resize_prediction(bias, channels_from=3, channels=channels, rule=rule)
    weight = resize_prediction(bias[:, None] * torch.tensor([1.0, 2.0]), channels_from=3,
                        channels=channels, rule=rule)  # fmt: skip

    wanted = torch.tensor([10.0 * q + c for q in range(4) for c in of_pixel])
    torch.testing.assert_close(made, wanted)
    torch.testing.assert_close(weight, wanted[:, None] * torch.tensor([1.0, 2.0]))


def test_channels_that_are_new_are_predicted_zero_by_the_rule_zero() -> None:
    made = resize_prediction(torch.arange(1.0, 13.0), channels_from=3, channels=5, rule="zero")

    assert made.view(4, 5)[:, 3:].eq(0).all()
    assert torch.equal(made.view(4, 5)[:, :3].flatten(), torch.arange(1.0, 13.0))


@pytest.mark.parametrize("channels", [1, 6, 9])
def test_the_projection_is_that_of_timm_where_timm_is_exact(
    channels: int, generator: torch.Generator
) -> None:
    weight = torch.randn(5, 3, 4, 4, generator=generator)

    made = resize_projection(weight, channels=channels, rule="repeat")

    torch.testing.assert_close(made, adapt_input_conv(channels, weight))


@pytest.mark.parametrize(("old", "new"), [(3, 6), (3, 4), (3, 13), (1, 3)])
def test_a_image_whose_channels_are_repeated_is_the_image_it_was(
    old: int, new: int, generator: torch.Generator, tmp_path: Path
) -> None:
    model = tiny_model(generator, channels=old)
    save(model, tmp_path)
    images, noise = batch(generator, model.config)
    repeated = images[:, [c % old for c in range(new)]]

    made, _ = initial_model(tmp_path, of_channels(model.config, new))

    before, after = model.reconstruct(images, noise=noise), made.reconstruct(repeated, noise=noise)
    by_channel = before.pred.unflatten(2, (-1, old))[..., [c % old for c in range(new)]]
    torch.testing.assert_close(after.pred, by_channel.flatten(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(made.encoder(repeated), model.encoder(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", ["repeat", "mean"])
def test_a_grey_image_is_as_bright_as_it_was(
    rule: ChannelRule, generator: torch.Generator, tmp_path: Path
) -> None:
    model = tiny_model(generator)
    save(model, tmp_path)
    grey = torch.randn(2, 1, *model.config.image_size, generator=generator)

    made, notes = initial_model(tmp_path, of_channels(model.config, 1), init_channels=rule)

    torch.testing.assert_close(
        made.encoder(grey), model.encoder(grey.expand(-1, 3, -1, -1)), rtol=0, atol=1e-5
    )
    assert notes[:1] == [f"channels: 3 of the weights made 1 by the rule {rule}"]


def test_the_first_channels_are_seen_as_before_by_the_rule_zero(
    generator: torch.Generator, tmp_path: Path
) -> None:
    model = tiny_model(generator)
    save(model, tmp_path)
    images = torch.randn(2, 4, *model.config.image_size, generator=generator)

    made, _ = initial_model(tmp_path, of_channels(model.config, 4), init_channels="zero")

    torch.testing.assert_close(
        made.encoder(images), model.encoder(images[:, :3]), rtol=0, atol=1e-5
    )


def test_a_rule_without_effect_or_meaning_is_refused(
    generator: torch.Generator, tmp_path: Path
) -> None:
    model = tiny_model(generator)
    save(model, tmp_path)

    with pytest.raises(ConfigError, match="mean has no effect, weights and images both have 3"):
        initial_model(tmp_path, model.config, init_channels="mean")
    with pytest.raises(ConfigError, match="zero would lose 2 of 3 channels, expected repeat"):
        initial_model(tmp_path, of_channels(model.config, 1), init_channels="zero")


def test_adapting_changes_nothing_of_what_it_was_given(generator: torch.Generator) -> None:
    model = tiny_model(generator)
    tensors = model.state_dict()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    to = of_channels(tiny_config(grid=(4, 7)), 4)

    made = resize_weights(tensors, {"image_size": model.config.image_size, "channels": 3}, to=to)

    assert all(torch.equal(tensors[name], tensor) for name, tensor in before.items())
    changed = {name for name in before if made.tensors[name] is not tensors[name]}
    assert changed == {
        "encoder.pos_embed",
        "decoder.pos_embed",
        "encoder.patch_embed.proj.weight",
        "decoder.pred.weight",
        "decoder.pred.bias",
    }


def test_both_tables_are_resized_as_published() -> None:
    golden = GOLDEN["resize_positions"]
    table = sincos_positions(golden["dim"], (3, 3))
    to = tiny_config(grid=(5, 5), width=8, num_heads=2, decoder_width=8)

    made = resize_weights(
        {"encoder.pos_embed": table, "decoder.pos_embed": table},
        {"image_size": (12, 12), "channels": 3},
        to=to,
    )

    for resized in made.tensors.values():  # float32
        assert resized.flatten().tolist() == pytest.approx(golden["table"], abs=1e-6)


@pytest.mark.parametrize("size", [(12, 12), (16, 28), (8, 44)])
def test_every_way_in_resizes_as_a_image_is_resized(
    size: tuple[int, int], generator: torch.Generator, tmp_path: Path
) -> None:
    model = tiny_model(generator)
    save(model, tmp_path)
    grid = (size[0] // 4, size[1] // 4)
    config = replace(model.config, image_size=size)
    tables = [bicubic(part.pos_embed, (3, 5), grid) for part in (model.encoder, model.decoder)]

    started, notes = initial_model(tmp_path, config, objective=model.objective)
    tuned, _ = initial_classifier(tmp_path, FinetuneConfig(model=config, num_classes=7))

    assert torch.equal(started.encoder.pos_embed, tables[0])
    assert torch.equal(started.decoder.pos_embed, tables[1])
    assert torch.equal(tuned.encoder.pos_embed, tables[0])
    assert notes[:1] == [f"positions: resized from (3, 5) to {grid} patches"]
    # A model as stored resizes both when it meets such a image: the same function.
    images, noise = batch(generator, config)
    torch.testing.assert_close(
        load(tmp_path).reconstruct(images, noise=noise).pred,
        started.reconstruct(images, noise=noise).pred,
        rtol=0,
        atol=1e-5,
    )


def test_a_table_that_is_not_of_the_size_it_says_is_refused_by_name(
    generator: torch.Generator, tmp_path: Path
) -> None:
    model = tiny_model(generator)
    model.decoder.pos_embed = torch.nn.Parameter(torch.zeros(1, 10, 16), requires_grad=False)
    save(model, tmp_path)

    with pytest.raises(WeightsError, match=r"decoder.pos_embed \[1, 10, 16\], expected \[1, 29"):
        initial_model(tmp_path, replace(model.config, image_size=(16, 28)))
