"""Other people's implementations, given our weights."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from benchmarks.gpu.sides import transformers_config
from torch import Tensor, nn
from transformers import ViTMAEForPreTraining

from mae.config.model import ModelConfig
from mae.config.objective import ObjectiveConfig
from mae.config.sizes import model_config
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.classifier import Classifier
from mae.model.encoder import Encoder
from tests.model.tiny import batch, scrambled, tiny_config

# theirs: ours; the order matters.
HUGGING_FACE = {
    r"^vit\.embeddings\.position_embeddings$": "encoder.pos_embed",
    r"^vit\.embeddings\.patch_embeddings\.projection": "encoder.patch_embed.proj",
    r"^vit\.embeddings\.cls_token$": "encoder.cls_token",
    r"^vit\.layernorm": "encoder.norm",
    r"^vit\.layers": "encoder.blocks",
    r"^decoder\.decoder_layers": "decoder.blocks",
    r"^decoder\.decoder_": "decoder.",
    r"layernorm_before": "norm1",
    r"layernorm_after": "norm2",
    r"attention\.o_proj": "attn.proj",
    r"attention\.([qkv])_proj": r"attn.qkv.\1",
}


def to_ours(name: str) -> str:
    for theirs, ours in HUGGING_FACE.items():
        name = re.sub(theirs, ours, name)
    return name


def fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename to ours and join queries, keys and values, in this order."""
    ours = {to_ours(name): tensor for name, tensor in tensors.items()}
    joined = {}
    for name, tensor in ours.items():
        layer, attention, rest = name.partition(".qkv.")
        if attention:
            kind = rest.partition(".")[2]  # weight or bias
            parts = [ours[f"{layer}.qkv.{part}.{kind}"] for part in "qkv"]
            joined[f"{layer}.qkv.{kind}"] = torch.cat(parts)
        else:
            joined[name] = tensor
    return joined


def theirs(
    config: ModelConfig,
    objective: ObjectiveConfig = ObjectiveConfig(),  # noqa: B008
) -> ViTMAEForPreTraining:
    return ViTMAEForPreTraining(
        transformers_config(config, objective)
    )  # eps 1e-6; their own is 1e-12


def assert_near(ours: Tensor, theirs: Tensor, name: str = "") -> None:
    """Within 1e-5 of the largest value: what float32 sums in another order differ by."""
    assert ours.shape == theirs.shape, name
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max(), name


@pytest.mark.parametrize("normalize_target", [True, False])
@pytest.mark.parametrize(("edge", "patch_size"), [(32, 8), (64, 16)])
def test_loss_predictions_and_gradients_are_those_of_transformers(
    generator, normalize_target, edge, patch_size
):
    config = tiny_config(image_size=(edge, edge), patch_size=patch_size)
    objective = ObjectiveConfig(normalize_target=normalize_target)
    ours = MaskedAutoencoder(config, objective)
    other = scrambled(theirs(config, objective), generator)
    other.vit.embeddings.position_embeddings.data = ours.encoder.pos_embed.clone()
    other.decoder.decoder_pos_embed.data = ours.decoder.pos_embed.clone()
    ours.load_state_dict(fused(other.state_dict()))
    images, noise = batch(generator, config)

    loss, mask = ours(images, noise=noise)
    loss.backward()
    expected = other(images, noise=noise)
    expected.loss.backward()

    assert abs(loss.item() - expected.loss.item()) <= 1e-6
    assert torch.equal(mask, expected.mask.bool())
    assert_near(ours.reconstruct(images, noise=noise).pred, expected.logits)
    gradients = fused({n: p.grad for n, p in other.named_parameters() if p.grad is not None})
    trained = {n: p.grad for n, p in ours.named_parameters() if p.requires_grad}
    assert trained.keys() == gradients.keys()
    for name, gradient in trained.items():
        assert_near(gradient, gradients[name], name)


@pytest.mark.slow
def test_the_encoder_is_timms_vit_base(generator):
    with torch.device("meta"):
        ours = Encoder(model_config("vit-b/16"))
        other = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0)
    tensors = {
        name: 0.02 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in ours.state_dict().items()
    }
    for module in (ours, other):
        module.load_state_dict(tensors, assign=True)  # all tensors, under the same names
    images = torch.randn(2, 3, 224, 224, generator=generator)

    with torch.inference_mode():
        tokens, expected = ours(images), other.eval().forward_features(images)

    assert tokens.shape == (2, 197, 768)
    assert_near(tokens, expected)


def parameters(module: nn.Module, *, trained: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


@pytest.mark.parametrize(
    ("size", "encoder", "decoder", "trained", "classifier"),
    [
        ("vit-b/16", 85_798_656, 26_109_184, 111_655_680, 86_567_656),
        ("vit-l/16", 303_301_632, 26_240_256, 329_239_296, 304_326_632),
        ("vit-h/14", 630_764_800, 26_309_708, 656_613_964, 632_045_800),
    ],
)
def test_the_published_sizes_have_the_published_numbers_of_parameters(
    size, encoder, decoder, trained, classifier
):
    with torch.device("meta"):
        model = MaskedAutoencoder(model_config(size))

        assert parameters(model.encoder) == encoder
        assert parameters(model.decoder) == decoder
        assert parameters(model, trained=True) == trained
        assert parameters(Classifier(model.encoder, num_classes=1000)) == classifier
