"""Reconstructions of images of any kind and number, and every error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae.config.model import PixelConfig, PixelDtype
from mae.data.sampling.masks import mask_noise
from mae.errors import ConfigError, DataError, MaeError, WeightsError
from mae.jobs.reconstruct import Reconstructed, reconstruct
from mae.model.masking import random_masking
from mae.report.tables import plain, value_rows
from mae.weights.formats.native import save
from tests.images import image, mixed_folder
from tests.model.tiny import tiny_model


def weights(folder: Path, *, channels: int = 3, dtype: PixelDtype = "uint8") -> Path:
    pixels = PixelConfig(dtype=dtype, mean=(0.5,) * channels, std=(0.25,) * channels)
    model = tiny_model(torch.Generator().manual_seed(0), channels=channels, pixels=pixels)
    return save(model, folder / "weights")


def drawn(folder: Path, out: str = "out.png", **options: object) -> Reconstructed:
    """Reconstruct three images at 12 x 20, 12 of whose 15 patches are hidden."""
    paths = [folder / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        image(30, 50, seed=number).save(path)
    given = {"out": folder / out, "quiet": True} | options
    return reconstruct(weights(folder), paths, **given)  # type: ignore[arg-type]


def test_each_image_is_a_row_of_four(tmp_path: Path) -> None:
    result = drawn(tmp_path)

    with Image.open(tmp_path / "out.png") as strip:
        assert strip.width == 4 * (200 + 4) + 4
        assert strip.height > 3 * (120 + 4)
    assert result.names == tuple(str(tmp_path / f"{n}.png") for n in range(3))
    assert "normalised by their own patch" in result.caption


def test_the_page_shows_each_image_and_the_errors_beside_their_baselines(tmp_path: Path) -> None:
    result = drawn(tmp_path, "out.html")

    text = (tmp_path / "out.html").read_text("utf-8")
    assert text.count("data:image/png;base64,") == 3
    assert "http" not in text
    assert list(result.psnr) == ["model", "bilinear in-fill", "mean colour"]
    for name, psnr in result.psnr.items():
        assert f'<th scope="row">{name}</th><td>{psnr:.1f}</td>' in text
        assert (f"psnr {name}", f"{psnr:.1f} dB") in [*value_rows(plain(result))]
    assert result.about in text


def test_the_seed_alone_decides_what_is_hidden(tmp_path: Path) -> None:
    first, again, other = ((drawn(tmp_path, seed=seed).out.read_bytes()) for seed in (0, 0, 1))

    assert first == again
    assert first != other


@pytest.mark.parametrize(("ratio", "hidden"), [(None, 12), (0.4, 6)])
def test_the_mask_ratio_is_that_of_training_unless_given(
    tmp_path: Path, ratio: float | None, hidden: int
) -> None:
    result = drawn(tmp_path, mask_ratio=ratio)

    assert f"over {3 * hidden * 4 * 4 * 3:,} hidden" in result.about


def test_the_mask_kind_is_that_of_training(tmp_path: Path) -> None:
    model = tiny_model(torch.Generator().manual_seed(0), mask_kind="block", mask_block=3)
    image(30, 50).save(tmp_path / "a.png")
    save(model, tmp_path / "weights")

    reconstruct(tmp_path / "weights", [tmp_path / "a.png"], out=tmp_path / "out.png", quiet=True)

    grey = masked_patches(tmp_path / "out.png")
    assert grey.sum() == 12
    assert grey[:, :3].all() or grey[:, 3:].all()  # cells of 3 x 3 and 3 x 2
    hidden = mask_noise(np.arange(1), model.objective, grid=(3, 5), seed=0)
    assert (grey.ravel() == random_masking(hidden, num_keep=3).mask[0].numpy()).all()


MASK = np.array([[0, 255, 255, 0, 0], [0, 255, 0, 0, 0], [0, 0, 0, 255, 0]], dtype=np.uint8)


def masked_patches(path: Path) -> np.ndarray:
    """Read which of 3 x 5 patches of the first image are grey, at 12 x 20 enlarged by 10."""
    with Image.open(path) as strip:
        patches = np.asarray(strip)[4:124, 208:408].reshape(3, 40, 5, 40, 3)
    return (patches == 128).all(axis=(1, 3, 4))


@pytest.mark.parametrize(
    "file",
    [
        Image.fromarray(MASK),
        Image.fromarray(MASK).convert("1"),
        Image.fromarray(MASK).convert("RGBA"),
        Image.fromarray(MASK).resize((20, 12), Image.Resampling.NEAREST),
        Image.fromarray(MASK.astype(np.uint16) * 130),  # of 16 bits, above the middle
    ],
    ids=["grey", "bits", "alpha", "size of images", "16 bits"],
)
def test_a_given_mask_hides_its_white_patches_of_every_image(
    tmp_path: Path, file: Image.Image
) -> None:
    file.save(tmp_path / "mask.png")

    result = drawn(tmp_path, mask=tmp_path / "mask.png")

    assert (masked_patches(tmp_path / "out.png") == (MASK == 255)).all()
    assert f"over {3 * 4 * 4 * 4 * 3:,} hidden" in result.about


@pytest.mark.parametrize("count", [1, 14])
def test_a_given_mask_may_hide_any_number_of_patches_but_all_or_none(
    tmp_path: Path, count: int
) -> None:
    mask = np.arange(15).reshape(3, 5) < count
    Image.fromarray(mask).save(tmp_path / "mask.png")

    drawn(tmp_path, mask=tmp_path / "mask.png")

    assert (masked_patches(tmp_path / "out.png") == mask).all()


@pytest.mark.parametrize(
    ("mask", "options", "error", "why"),
    [
        (MASK * 0, {}, DataError, r"hides 0 of 15 patches, expected some"),
        (MASK * 0 + 255, {}, DataError, "hides 15 of 15 patches"),
        (MASK.T, {}, DataError, r"is 5 x 3 pixels, expected 3 x 5, the patches, or 12 x 20"),
        (MASK, {"mask_ratio": 0.5}, ConfigError, "mask_ratio: has no effect on a given --mask"),
        (MASK, {"mask_kind": "block"}, ConfigError, "mask_kind: has no effect on a given --mask"),
        (MASK, {"seed": 0}, ConfigError, "seed: has no effect on a given --mask, .* drop it"),
        (None, {}, DataError, "mask.png: cannot be read: .*No such file"),
    ],
)
def test_masks_of_no_use_are_refused_in_one_line(
    tmp_path: Path,
    mask: np.ndarray | None,
    options: dict[str, object],
    error: type[MaeError],
    why: str,
) -> None:
    if mask is not None:
        Image.fromarray(np.ascontiguousarray(mask)).save(tmp_path / "mask.png")

    with pytest.raises(error, match=why) as found:
        drawn(tmp_path, mask=tmp_path / "mask.png", **options)

    assert "\n" not in str(found.value) and not (tmp_path / "out.png").exists()


def test_another_kind_of_mask_may_be_asked_for(tmp_path: Path) -> None:
    drawn(tmp_path, mask_kind="block", mask_ratio=0.6)

    hidden = masked_patches(tmp_path / "out.png")
    cells = [hidden[r : r + 2, c : c + 2] for r in (0, 2) for c in (0, 2, 4)]
    assert hidden.sum() == 9
    assert sum(bool(cell.any()) and not bool(cell.all()) for cell in cells) <= 1
    with pytest.raises(ConfigError, match=r"mask_kind grid: expected even .*, got \(3, 5\)"):
        drawn(tmp_path, mask_kind="grid", mask_ratio=0.75)


def test_of_a_folder_a_few_are_drawn_and_broken_ones_named(tmp_path: Path) -> None:
    broken = mixed_folder(tmp_path / "images", count=20, broken=4)

    result = reconstruct(
        weights(tmp_path), [tmp_path / "images"], out=tmp_path / "out.png", count=20, quiet=True
    )

    assert sorted(result.bad) == sorted(broken)
    assert len(result.names) == 16
    few = reconstruct(
        weights(tmp_path), [tmp_path / "images"], out=tmp_path / "out.png", count=5, quiet=True
    )
    assert len(few.names) + len(few.bad) == 5


def test_images_are_read_as_the_model_was_trained(tmp_path: Path) -> None:
    deep = np.arange(12 * 20, dtype=np.uint16).reshape(12, 20) * 200
    Image.fromarray(deep).save(tmp_path / "deep.png")
    image(12, 20).save(tmp_path / "colour.jpg")
    np.save(tmp_path / "four.npy", np.random.default_rng(0).random((12, 20, 4), np.float32))

    for name, channels, dtype in (
        ("deep.png", 1, "uint16"),
        ("colour.jpg", 1, "uint8"),
        ("deep.png", 3, "uint8"),
        ("four.npy", 4, "float32"),
    ):
        path = weights(tmp_path, channels=channels, dtype=dtype)  # type: ignore[arg-type]
        result = reconstruct(path, [tmp_path / name], out=tmp_path / "out.png", quiet=True)
        assert result.names == (str(tmp_path / name),), name


def test_an_encoder_alone_cannot_reconstruct_and_the_message_says_what_it_can(
    tmp_path: Path,
) -> None:
    model = tiny_model(torch.Generator().manual_seed(0))
    save(model.encoder, tmp_path / "encoder")

    with pytest.raises(WeightsError, match=r"features are possible.*reconstruction is not"):
        reconstruct(tmp_path / "encoder", [tmp_path], out=tmp_path / "out.png", quiet=True)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"out": "out.gif"}, ConfigError, r"ending in .png or .html, got .*out.gif"),
        ({"mask_ratio": 1.0}, ConfigError, r"mask_ratio: 1.0 of 15 patches would keep 0"),
        ({"mask_ratio": 0.0}, ConfigError, r"mask_ratio: 0.0 of 15 .* hides at least one"),
    ],
)
def test_options_that_cannot_be_are_refused(
    tmp_path: Path, options: dict[str, object], error: type[MaeError], said: str
) -> None:
    with pytest.raises(error, match=said):
        drawn(tmp_path, **options)


def test_an_image_is_never_written_over(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"1\.png is one of the images"):
        drawn(tmp_path, "1.png")

    with Image.open(tmp_path / "1.png") as kept:
        assert kept.size == (50, 30)


def test_images_that_are_missing_or_all_broken_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    path, out = weights(tmp_path), tmp_path / "out.png"

    with pytest.raises(DataError, match=r"none of 1 can be read; the first, .*text.jpg: "):
        reconstruct(path, [tmp_path / "text.jpg"], out=out, quiet=True)
    with pytest.raises(DataError, match=r"no file .*gone.jpg"):
        reconstruct(path, [tmp_path / "gone.jpg"], out=out, quiet=True)
    with pytest.raises(DataError, match=r"images: none of 0"):
        reconstruct(path, [], out=out, quiet=True)
    assert not out.exists()
