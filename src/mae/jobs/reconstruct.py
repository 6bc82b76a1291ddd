"""Reconstruct masked images and draw the results as a .png or an .html page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Unpack
from xml.etree.ElementTree import Element

import numpy as np
import torch
from torch import Tensor

from mae.atomic import write_atomic
from mae.data.sampling.masks import mask_noise
from mae.data.sources.open import open_source
from mae.data.sources.source import FolderSource
from mae.errors import ConfigError, DataError
from mae.evaluation.inputs import evaluation_batches, report_view
from mae.evaluation.reconstruction import HiddenPsnr, hidden_psnr
from mae.model.autoencoder import MaskedAutoencoder
from mae.planning.hardware import choose_device
from mae.progress import Progress
from mae.report.figures import element, image_element, png_bytes
from mae.report.page import html_page, results_table
from mae.report.reconstruction import (
    STAGES,
    Panels,
    evenly,
    reconstruction_panels,
    reconstruction_strip,
    tile,
)
from mae.weights.given import Given
from mae.weights.load import open_model


class Reconstructed(NamedTuple):
    """A drawing of images that a model reconstructed."""

    out: Path
    names: tuple[str, ...]
    """The images drawn, in order."""
    bad: dict[str, str]
    """Reason why an image could not be read, by image name."""
    caption: str
    """What is drawn where it differs from the model's plain prediction."""
    psnr: dict[str, float]
    """PSNR in dB of the model and of the baselines, by name."""
    about: str
    """What was measured."""


def reconstruct(
    weights: str | Path,
    pictures: Sequence[str | Path],
    *,
    out: Path,
    mask_ratio: float | None = None,
    seed: int = 0,
    count: int = 8,
    device: str = "auto",
    crop_pct: float | None = None,
    quiet: bool = False,
    **given: Unpack[Given],
) -> Reconstructed:
    """Mask patches of images, reconstruct them, and draw both.

    Args:
        weights: whatever `mae.load` takes; they need a decoder.
        pictures: image files, and folders from each of which some images are taken.
        out: .png, or .html for a page with the measured errors.
        mask_ratio: fraction of the patches that is hidden; none: as in training.
        seed: key of the masks.
        count: number of images from each folder, evenly spread.
        device: see `choose_device`.
        crop_pct: fraction of an image that is kept, see `ModelConfig`; none: as in the weights.
        quiet: show no notes.
        given: what the weights do not say, see `Given`.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    if out.suffix not in (".png", ".html"):
        raise ConfigError(f"out: expected a name ending in .png or .html, got {out}")
    if any(out.exists() and out.samefile(path) for path in pictures if Path(path).exists()):
        raise ConfigError(f"out: {out} is one of the pictures; choose another name")
    with Progress(quiet=quiet) as progress:
        model, notes = open_model(weights, crop_pct=crop_pct, **given)
        for note in notes:
            progress.note(note)
        report_view(model.config, log=progress.note)
    model = model.to(choose_device(device)).eval()
    if mask_ratio is not None:
        model.objective = replace(model.objective, mask_ratio=mask_ratio)
    images, names, bad = _read(pictures, model, count=count)
    ids = np.arange(len(names), dtype=np.int64)
    noise = mask_noise(ids, model.objective, grid=model.config.grid, seed=seed)
    panels = reconstruction_panels(model, images, noise=noise)
    psnr = hidden_psnr(model, [(images, noise)])
    if out.suffix == ".html":
        content = html_page(f"Reconstructions by {weights}", _page(panels, names, psnr))
    else:
        content = png_bytes(reconstruction_strip(panels))
    write_atomic(out, content)
    return Reconstructed(out, tuple(names), bad, panels.caption, psnr.psnr, psnr.about)


def _read(
    pictures: Sequence[str | Path], model: MaskedAutoencoder, *, count: int
) -> tuple[Tensor, list[str], dict[str, str]]:
    """Read the images in the format the model was trained on: B C H W of the stored dtype."""
    images, names = [], []
    bad: dict[str, str] = {}
    for path in pictures:
        folder = Path(path).is_dir()
        source = open_source(path) if folder else FolderSource.of_files([path])
        for read in evaluation_batches(
            model.encoder, source, evenly(range(len(source)), count), batch=count
        ):
            images.append(read.images)
            names += [source.name(i) for i in read.ids.tolist()]
            bad |= {picture.name: picture.reason for picture in read.bad}
    if not names:
        first = "".join(f"; the first, {name}: {reason}" for name, reason in [*bad.items()][:1])
        raise DataError(f"pictures: none of {len(bad)} can be read{first}. Name others")
    return torch.cat(images), names, bad


def _page(panels: Panels, names: Sequence[str], psnr: HiddenPsnr) -> Iterator[Element]:
    yield element("p", "From left to right: " + "; ".join(STAGES.values()) + ".")
    yield element("p", panels.caption, class_="quiet")
    for name, cells in zip(names, panels.cells, strict=True):
        picture = tile(cells[None])
        image = image_element(picture, f"{name} in four stages")
        yield element("figure", image, element("figcaption", name), class_="strip")
    yield results_table(psnr.to_dict())
