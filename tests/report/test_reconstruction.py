"""What is drawn of a reconstruction: every kind of image, exact where it is visible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mae.config.model import PixelConfig
from mae.errors import ConfigError, DataError
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.normalize import denormalize_pixels
from mae.report.reconstruction import (
    GAP,
    GREY,
    STAGES,
    evenly,
    read_stages,
    reconstruction_panels,
    reconstruction_strip,
    save_progress_image,
    tile,
)
from tests.model.tiny import GRID, B, tiny_model

H, W, L = 12, 20, 15


def stored(generator: torch.Generator, *, channels: int, dtype: torch.dtype, top: int) -> Tensor:
    drawn = torch.randint(top, (B, channels, H, W), generator=generator)
    return drawn.to(dtype)


def model_for(
    generator: torch.Generator, *, channels: int = 3, dtype: str = "uint8", **fields: Any
) -> MaskedAutoencoder:
    mean, std = (0.5,) * channels, (0.25,) * channels
    pixels = PixelConfig(dtype=dtype, mean=mean, std=std)  # type: ignore[arg-type]
    return tiny_model(generator, channels=channels, pixels=pixels, **fields)


KINDS = [
    (1, torch.uint8, 256),
    (3, torch.uint8, 256),
    (2, torch.uint8, 256),
    (4, torch.uint16, 4096),
    (1, torch.float32, 3),
]


@pytest.mark.parametrize(("channels", "dtype", "top"), KINDS, ids=str)
@pytest.mark.parametrize("normalize_target", [True, False])
def test_the_pasted_image_is_the_original_wherever_it_is_visible(
    generator: torch.Generator,
    channels: int,
    dtype: torch.dtype,
    top: int,
    normalize_target: bool,  # noqa: FBT001
) -> None:
    name = str(dtype).removeprefix("torch.")
    model = model_for(generator, channels=channels, dtype=name, normalize_target=normalize_target)
    images = stored(generator, channels=channels, dtype=dtype, top=top)
    noise = torch.rand(B, L, generator=generator)

    cells = reconstruction_panels(model, images, hides=noise).cells

    mask = model.reconstruct(model.normalize(images), noise=noise).mask
    hidden = mask.view(B, *GRID).numpy().repeat(4, 1).repeat(4, 2)
    original, masked, prediction, pasted = cells.swapaxes(0, 1)
    assert cells.shape == (B, len(STAGES), H, W, 3)
    assert cells.dtype == np.uint8
    assert (masked[hidden] == GREY).all()
    assert np.array_equal(masked[~hidden], original[~hidden])
    assert np.array_equal(pasted[~hidden], original[~hidden])
    assert np.array_equal(pasted[hidden], prediction[hidden])
    assert not np.array_equal(prediction[~hidden], original[~hidden])


def test_the_original_of_8_bits_is_drawn_as_it_is(generator: torch.Generator) -> None:
    images = stored(generator, channels=3, dtype=torch.uint8, top=256)

    cells = reconstruction_panels(
        model_for(generator), images, hides=torch.rand(B, L, generator=generator)
    ).cells

    assert np.array_equal(cells[:, 0], images.permute(0, 2, 3, 1).numpy())


def test_the_pasted_image_is_what_the_model_fills_in(generator: torch.Generator) -> None:
    model = model_for(generator)
    images = stored(generator, channels=3, dtype=torch.uint8, top=256)
    noise = torch.rand(B, L, generator=generator)

    cells = reconstruction_panels(model, images, hides=noise).cells

    filled = model.reconstruct(model.normalize(images), noise=noise).images
    expected = denormalize_pixels(filled, model.config.pixels).clamp(0, 1) * 255
    assert np.abs(cells[:, 3] - expected.permute(0, 2, 3, 1).numpy()).max() <= 0.501


def test_a_normalised_prediction_has_the_mean_of_the_original_patch(
    generator: torch.Generator,
) -> None:
    model = model_for(generator)
    model.decoder.pred.weight.data.zero_()
    model.decoder.pred.bias.data.zero_()
    images = stored(generator, channels=3, dtype=torch.uint8, top=256)

    panels = reconstruction_panels(model, images, hides=torch.rand(B, L, generator=generator))

    corner = panels.cells[0, 2, :4, :4].astype(float)
    assert np.ptp(corner) == 0
    assert corner.mean() == pytest.approx(panels.cells[0, 0, :4, :4].mean(), abs=0.6)
    assert "mean and std of each drawn patch are those of the original" in panels.caption


@pytest.mark.parametrize(("channels", "said"), [(2, "the first is"), (4, "the first three are")])
def test_channels_that_are_left_out_are_said(
    generator: torch.Generator, channels: int, said: str
) -> None:
    model = model_for(generator, channels=channels, normalize_target=False)
    images = stored(generator, channels=channels, dtype=torch.uint8, top=256)

    panels = reconstruction_panels(model, images, hides=torch.rand(B, L, generator=generator))

    assert panels.caption == f"Of {channels} channels {said} drawn."
    assert np.array_equal(panels.cells[:, 0, :, :, 0], images[:, 0].numpy())


def test_images_of_more_bits_are_stretched_and_said(generator: torch.Generator) -> None:
    model = model_for(generator, channels=1, dtype="uint16", normalize_target=False)
    images = stored(generator, channels=1, dtype=torch.uint16, top=4096)

    panels = reconstruction_panels(model, images, hides=torch.rand(B, L, generator=generator))

    assert panels.cells[:, 0].min() == 0
    assert panels.cells[:, 0].max() == 255
    assert panels.caption == "Brightness is stretched to the range of each original."


def test_a_plain_pixel_model_needs_no_caption(generator: torch.Generator) -> None:
    model = model_for(generator, normalize_target=False)
    images = stored(generator, channels=3, dtype=torch.uint8, top=256)

    assert (
        reconstruction_panels(model, images, hides=torch.rand(B, L, generator=generator)).caption
        == ""
    )


def test_a_model_that_diverged_is_drawn(generator: torch.Generator) -> None:
    model = model_for(generator)
    model.decoder.pred.bias.data.fill_(torch.nan)
    images = stored(generator, channels=3, dtype=torch.uint8, top=256)

    cells = reconstruction_panels(model, images, hides=torch.rand(B, L, generator=generator)).cells

    assert (cells[:, 2] == 0).all()


def test_small_images_are_enlarged_by_whole_pixels() -> None:
    cells = np.arange(2 * 3 * 28 * 35 * 3).astype(np.uint8).reshape(2, 3, 28, 35, 3)

    sheet = np.asarray(tile(cells))

    assert sheet.shape == (2 * (112 + GAP), 3 * (140 + GAP), 3)
    assert np.array_equal(sheet[2:112:4, 2:140:4], cells[0, 0])
    assert (sheet[112 : 112 + GAP] == 255).all()


def test_large_images_keep_their_size() -> None:
    assert tile(np.zeros((1, 2, 224, 160, 3), np.uint8)).size == (2 * (160 + GAP), 224 + GAP)


def test_a_strip_explains_itself(generator: torch.Generator) -> None:
    model = model_for(generator)
    images = stored(generator, channels=3, dtype=torch.uint8, top=256)
    panels = reconstruction_panels(model, images, hides=torch.rand(B, L, generator=generator))

    strip, plain = (
        np.asarray(reconstruction_strip(p).convert("L"))
        for p in (panels, panels._replace(caption=""))
    )

    bottom = GAP + B * (120 + GAP)
    assert (plain[bottom:] < 128).any()  # the stages
    assert strip.shape[0] > plain.shape[0]  # and the caption


def test_a_progress_image_comes_back_in_stages(generator: torch.Generator, tmp_path: Path) -> None:
    model = model_for(generator).train()
    images = stored(generator, channels=3, dtype=torch.uint8, top=256)
    noise = torch.rand(B, L, generator=generator)
    path, before = tmp_path / "images" / "step-00000040.png", torch.get_rng_state()

    save_progress_image(model, images, noise, path)

    cells = reconstruction_panels(model, images, hides=noise).cells
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    for number, (stage, image) in enumerate(read_stages(path).items()):
        pixels = np.asarray(image)[5::10, 5:200:10]
        assert stage == list(STAGES)[number]
        assert np.array_equal(pixels, cells[0, number])


def test_a_progress_image_that_cannot_be_written_is_said(
    generator: torch.Generator, tmp_path: Path
) -> None:
    (tmp_path / "images").touch()
    images = stored(generator, channels=3, dtype=torch.uint8, top=256)
    noise = torch.rand(B, L, generator=generator)

    with pytest.raises(ConfigError, match="cannot be written"):
        save_progress_image(model_for(generator), images, noise, tmp_path / "images/a.png")


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n0000"])
def test_a_damaged_progress_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "step-00000000.png").write_bytes(content)

    with pytest.raises(DataError, match=r"step-00000000.png: cannot be read.*delete it"):
        read_stages(tmp_path / "step-00000000.png")


def test_a_choice_is_spread_evenly_with_both_ends() -> None:
    assert evenly(range(10), 4) == [0, 3, 6, 9]
    assert evenly(range(3), 8) == [0, 1, 2]
    assert evenly(range(5), 1) == [0]
    assert evenly((), 3) == []
