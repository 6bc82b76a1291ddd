import numpy as np
import pytest
import torch

from mae.config.model import ModelConfig, PixelConfig
from mae.evaluation.features import encoder_features, pixel_features, standardized
from mae.model.encoder import Encoder


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    config = ModelConfig(
        image_size=(12, 20), patch_size=4, channels=3, width=24, depth=2, num_heads=3,
        decoder_width=16, decoder_depth=1, decoder_heads=2,
    )  # fmt: skip
    return Encoder(config)


@pytest.fixture
def images(rng):
    return torch.from_numpy(rng.integers(0, 256, (5, 3, 12, 20), dtype=np.uint8))


def test_features_are_those_of_encode_whatever_the_batches(encoder, images):
    found = encoder_features(encoder, [images[:2], images[2:]], pools=["mean", "cls", "grid"])

    for pool, width in (("mean", 24), ("cls", 24), ("grid", 216)):
        assert found[pool].shape == (5, width)
        assert found[pool].dtype == np.float32
        np.testing.assert_allclose(found[pool], encoder.encode(images, pool=pool), atol=1e-5)


def test_features_leave_the_encoder_in_the_mode_it_was_in(encoder, images):
    encoder.train()

    encoder_features(encoder, [images], pools=["mean"])

    assert encoder.training


def test_raw_pixels_are_flattened_and_scaled_by_their_range(images):
    eight = pixel_features([images[:2], images[2:]])
    sixteen = pixel_features([torch.full((2, 1, 3, 5), 65535, dtype=torch.uint16)])

    np.testing.assert_allclose(eight, images.reshape(5, 720).numpy() / 255, rtol=1e-6)
    np.testing.assert_array_equal(sixteen, np.ones((2, 15), dtype=np.float32))


def test_float_pixels_are_taken_as_they_are():
    images = torch.rand(2, 1, 3, 5)

    np.testing.assert_array_equal(pixel_features([images]), images.reshape(2, 15).numpy())


def test_standardised_training_features_have_mean_0_and_deviation_1(rng):
    train = rng.normal(3, 7, (50, 4)).astype(np.float32)

    standard = standardized(train, train)[0]

    np.testing.assert_allclose(standard.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(standard.std(axis=0), 1, rtol=1e-5)


def test_a_feature_constant_in_training_says_nothing():
    train = np.full((50, 2), 0.1, dtype=np.float32)
    train[:25, 1] = 0.3
    test = np.array([[5.0, 0.2]], dtype=np.float32)

    standard = standardized(train, test)[1]

    np.testing.assert_allclose(standard, [[0, 0]], atol=1e-6)


def test_test_images_do_not_move_the_standardisation(rng):
    train, test = rng.random((2, 30, 4), dtype=np.float32)
    spoiled = np.concatenate([test[:1], 1000 * test[1:]])

    train_alone, alone = standardized(train, test[:1])
    train_together, together = standardized(train, spoiled)

    np.testing.assert_array_equal(alone, together[:1])
    np.testing.assert_array_equal(train_alone, train_together)


def test_pixels_config_reaches_the_features(images):
    torch.manual_seed(0)
    config = ModelConfig(
        image_size=(12, 20), patch_size=4, channels=3, width=24, depth=1, num_heads=3,
        decoder_width=16, decoder_depth=1, decoder_heads=2,
        pixels=PixelConfig(mean=(0.1, 0.2, 0.3), std=(2.0, 2.0, 2.0)),
    )  # fmt: skip
    encoder = Encoder(config)

    found = encoder_features(encoder, [images], pools=["mean"])["mean"]

    normalised = (images / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 2
    np.testing.assert_allclose(found, encoder.encode(normalised), atol=1e-5)
