from __future__ import annotations

import torch

from mae.model.classifier import Classifier
from mae.model.encoder import Encoder
from tests.model.tiny import batch, scrambled, tiny_config


def test_scores_are_the_head_on_the_norm_of_the_mean_of_the_patch_tokens(generator):
    model = scrambled(Classifier(Encoder(tiny_config()), num_classes=7), generator)
    images, _ = batch(generator, model.encoder.config)

    scores = model(images)

    tokens = model.encoder(images)  # its own last norm is left out
    mean = tokens[:, 1:].sum(dim=1) / 15
    expected = torch.nn.functional.layer_norm(mean, (24,), model.fc_norm.weight, model.fc_norm.bias)
    expected = expected @ model.head.weight.T + model.head.bias
    assert scores.shape == (2, 7)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


def test_the_encoders_last_norm_is_replaced():
    names = set(Classifier(Encoder(tiny_config()), num_classes=7).state_dict())

    assert {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"} <= names
    assert not {"encoder.norm.weight", "encoder.norm.bias"} & names


def test_a_new_head_starts_near_zero():
    head = Classifier(Encoder(tiny_config(width=96)), num_classes=100).head

    assert abs(head.weight.std() / 2e-5 - 1) < 0.05
    assert torch.equal(head.bias, torch.zeros(100))


def test_with_the_cls_token_the_encoders_norm_is_kept(generator):
    model = Classifier(Encoder(tiny_config()), num_classes=7, pool="cls")
    model = scrambled(model, generator)
    images, _ = batch(generator, model.encoder.config)

    scores = model(images)

    expected = model.encoder(images)[:, 0] @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    assert "encoder.norm.weight" in model.state_dict()
    assert not [name for name in model.state_dict() if name.startswith("fc_norm")]
