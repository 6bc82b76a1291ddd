"""Windows, and the encoder as a dense backbone, against written-out versions and transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import VitDetConfig, VitDetModel

from mae.config.dense import DenseConfig
from mae.errors import ConfigError
from mae.model.dense.backbone import DenseBackbone
from mae.model.dense.windows import GridWindows
from mae.model.encoder import Encoder
from mae.model.transformer import Block
from tests.model.tiny import D, scrambled, tiny_config

B, C = 2, 3


def backbone(
    generator: torch.Generator, *, blocks: tuple[int, ...] = (0, 1, 2), **fields: Any
) -> tuple[Encoder, DenseBackbone]:
    """An encoder of three blocks and 3 x 5 patches of 4 pixels, and a backbone of its parts."""
    grid = fields.pop("grid", (3, 5))
    encoder = scrambled(Encoder(tiny_config(depth=3, grid=grid)), generator)
    dense = scrambled(DenseBackbone(encoder, DenseConfig(**fields), blocks=blocks), generator)
    return encoder, dense.eval()


def images(generator: torch.Generator, height: int, width: int) -> Tensor:
    return torch.randn(B, C, height, width, generator=generator)


def test_windows_are_those_of_a_written_out_loop() -> None:
    tokens = torch.arange(2 * 3 * 5 * 7).reshape(2, 15, 7).float()
    plane = tokens.reshape(2, 3, 5, 7)
    expected = []
    for image in plane:
        padded = torch.zeros(4, 6, 7)
        padded[:3, :5] = image
        for top in (0, 2):
            for left in (0, 2, 4):
                expected.append(padded[top : top + 2, left : left + 2].reshape(4, 7))

    windows = GridWindows((3, 5), 2)

    assert torch.equal(windows.split(tokens), torch.stack(expected))
    assert torch.equal(windows.join(windows.split(tokens)), tokens)


def test_without_windows_the_maps_are_those_of_the_encoder(generator: torch.Generator) -> None:
    encoder, dense = backbone(generator, blocks=(0, 2))

    for size in ((12, 20), (20, 8)):  # its own grid, and another
        found = dense(given := images(generator, *size))

        expected = encoder.intermediates(given, blocks=(0, 2))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_an_image_between_patches_is_padded_with_zeros_at_the_bottom_and_the_right(
    generator: torch.Generator,
) -> None:
    _, dense = backbone(generator)
    given = images(generator, 10, 17)

    found = dense(given)

    padded = torch.zeros(B, C, 12, 20)
    padded[..., :10, :17] = given
    assert [m.shape for m in found] == [(B, D, 3, 5)] * 3
    torch.testing.assert_close(found, dense(padded))


def test_pads_attend_as_the_published_code_lets_them(generator: torch.Generator) -> None:
    block = scrambled(Block(D, num_heads=3, mlp_ratio=4.0, norm_eps=1e-6), generator)
    tokens = torch.randn(1, 2 * 3, D, generator=generator)

    found = block(tokens, windows=GridWindows((2, 3), 2))

    # Written out: after the norm, zeros; they have keys and values (the biases) and take part.
    normed = block.norm1(tokens).reshape(2, 3, D)
    mixed = torch.zeros(2, 3, D)
    for left in (0, 2):
        window = torch.zeros(2, 2, D)
        part = normed[:, left : left + 2]
        window[:, : part.shape[1]] = part
        after = block.attn(window.reshape(1, 4, D)).reshape(2, 2, D)
        mixed[:, left : left + 2] = after[:, : part.shape[1]]
    expected = tokens + mixed.reshape(1, 6, D)
    expected = expected + block.mlp(block.norm2(expected))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_padding_leaves_the_tokens_of_whole_windows_unchanged(generator: torch.Generator) -> None:
    _, dense = backbone(generator, window=2)
    # Positions of the grid would be resized: none here, so that only padding differs.
    dense.pos_embed.data.zero_()
    given = images(generator, 12, 20)

    whole = dense(given[..., :8, :16])  # 2 x 4 patches: whole windows
    padded = dense(given)  # 3 x 5 patches

    for found, expected in zip(padded, whole, strict=True):
        torch.testing.assert_close(found[..., :2, :4], expected, atol=1e-5, rtol=0)


def test_a_window_of_the_whole_grid_is_global_attention(generator: torch.Generator) -> None:
    encoder, windowed = backbone(generator, window=3, grid=(3, 3))
    everywhere = DenseBackbone(
        encoder, DenseConfig(window=2, global_blocks=(0, 1, 2)), blocks=(0, 1, 2)
    )
    given = images(generator, 12, 12)

    torch.testing.assert_close(windowed(given), everywhere(given), atol=1e-5, rtol=0)


def test_windows_and_decomposed_positions_equal_transformers(generator: torch.Generator) -> None:
    _, dense = backbone(
        generator, grid=(5, 5), window=2, global_blocks=(1,), relative_positions="decomposed"
    )
    config = VitDetConfig(
        hidden_size=D, num_hidden_layers=3, num_attention_heads=3, image_size=20,
        pretrain_image_size=20, patch_size=4, window_size=2, window_block_indices=[0, 2],
        use_relative_position_embeddings=True, layer_norm_eps=1e-6,
    )  # fmt: skip
    theirs = VitDetModel(config).eval()
    theirs.load_state_dict({
        "embeddings.position_embeddings": dense.pos_embed,
        "embeddings.projection.weight": dense.patch_embed.proj.weight,
        "embeddings.projection.bias": dense.patch_embed.proj.bias,
        **{
            f"encoder.layer.{number}.{name.replace('attn.', 'attention.')}": tensor
            for number, block in enumerate(dense.blocks)
            for name, tensor in block.state_dict().items()
        },
        **{
            f"encoder.layer.{number}.attention.{name}": tensor
            for number, part in enumerate(dense.relative)
            for name, tensor in part.state_dict().items()
        },
    })  # fmt: skip

    for size in ((20, 20), (12, 28)):  # another grid: their tables are resized as well
        found = dense(given := images(generator, *size))

        expected = theirs(given, output_hidden_states=True).hidden_states[1:]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_relative_positions_change_nothing_at_the_start(generator: torch.Generator) -> None:
    for kind, window in (("table", None), ("decomposed", 2)):
        encoder, plain = backbone(generator, window=window)
        config = DenseConfig(window=window, relative_positions=kind, layer_scale=1.0)
        dense = DenseBackbone(encoder, config, blocks=(0, 1, 2))
        given = images(generator, 12, 20)

        torch.testing.assert_close(dense(given), plain(given), atol=1e-5, rtol=0)


def test_layer_scale_multiplies_the_branches_by_channel(generator: torch.Generator) -> None:
    encoder, dense = backbone(generator, blocks=(0,), layer_scale=0.5)
    attn, mlp = dense.layer_scale[0]()
    given = images(generator, 12, 20)

    (found,) = dense(given)

    block, tokens = encoder.blocks[0], encoder.embed(given)
    tokens = tokens + attn * block.attn(block.norm1(tokens))
    tokens = tokens + mlp * block.mlp(block.norm2(tokens))
    expected = tokens[:, 1:].transpose(1, 2).reshape(B, D, 3, 5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_dropped_branches_are_those_of_the_draws(generator: torch.Generator) -> None:
    encoder, _ = backbone(generator)
    scales = DenseConfig(layer_scale=1.0)
    dense = DenseBackbone(encoder, scales, blocks=(2,), drop_path=0.5)
    draws = torch.rand(B, 6, generator=generator)
    given = images(generator, 12, 20)

    (found,) = dense(given, drops=draws)

    keep = torch.tensor([1, 1, 0.75, 0.75, 0.5, 0.5])
    tokens = encoder.blocks(encoder.embed(given), scales=(draws < keep) / keep)
    expected = tokens[:, 1:].transpose(1, 2).reshape(B, D, 3, 5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_checkpointing_changes_no_gradient(generator: torch.Generator) -> None:
    _, dense = backbone(generator, window=2, relative_positions="decomposed")
    dense.train()
    given = images(generator, 12, 20)

    def gradients() -> list[Tensor]:
        loss = sum(m.square().mean() for m in dense(given))
        return [*torch.autograd.grad(loss, [p for p in dense.parameters() if p.requires_grad])]

    expected = gradients()
    dense.blocks.checkpoint_every = 2

    torch.testing.assert_close(gradients(), expected)


@pytest.mark.slow
def test_it_compiles_to_one_graph(generator: torch.Generator) -> None:
    encoder = Encoder(tiny_config(depth=2))
    config = DenseConfig(
        window=2, global_blocks=(1,), relative_positions="decomposed", layer_scale=0.5
    )
    dense = scrambled(DenseBackbone(encoder, config, blocks=(0, 1), drop_path=0.5), generator)
    given, draws = images(generator, 12, 20), torch.rand(B, 4, generator=generator)

    found = torch.compile(dense, backend="eager", fullgraph=True)(given, drops=draws)

    torch.testing.assert_close(found, dense(given, drops=draws))


def test_every_block_of_the_encoder_is_shared_and_keeps_its_names(
    generator: torch.Generator,
) -> None:
    encoder, dense = backbone(generator, layer_scale=1.0, relative_positions="table")

    own = set(dense.state_dict())

    assert set(encoder.state_dict()) - own == {"norm.weight", "norm.bias"}
    assert {name.split(".")[0] for name in own - set(encoder.state_dict())} == {
        "relative",
        "layer_scale",
    }
    assert dense.blocks is encoder.blocks


def test_the_cls_token_stays_where_windows_leave_it_a_place(generator: torch.Generator) -> None:
    assert backbone(generator)[1].cls_token is not None
    assert backbone(generator, relative_positions="table")[1].cls_token is not None
    assert backbone(generator, window=2)[1].cls_token is None
    assert backbone(generator, relative_positions="decomposed")[1].cls_token is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"global_blocks": (1,)}, "none without dense.window"),
        ({"window": 2, "relative_positions": "table"}, "decomposed with dense.window"),
        ({"window": 0}, "at least 1"),
        ({"window": 2, "global_blocks": (3,)}, "0 to 2"),
    ],
)
def test_what_cannot_be_combined_is_refused(
    fields: dict[str, Any], words: str, generator: torch.Generator
) -> None:
    with pytest.raises(ConfigError, match=words):
        backbone(generator, **fields)
