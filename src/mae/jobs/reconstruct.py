"""Reconstruct masked images and draw the results as a .png or an .html page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Unpack
from xml.etree.ElementTree import Element

import numpy as np
import torch
from torch import Tensor

from mae.atomic import write_atomic
from mae.config.model import refuse_without_effect
from mae.config.objective import MaskKind, ObjectiveConfig
from mae.data.sampling.masks import mask_noise, read_mask
from mae.data.sources.open import open_source
from mae.data.sources.source import FolderSource
from mae.errors import ConfigError, DataError
from mae.evaluation.inputs import evaluation_batches, report_view
from mae.evaluation.reconstruction import HiddenPsnr, hidden_psnr
from mae.model.autoencoder import MaskedAutoencoder
from mae.planning.hardware import choose_device
from mae.progress import Progress
from mae.report.figures import element, image_element, png_bytes
from mae.report.html import html_page
from mae.report.page import results_table
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
    images: str | Path | Sequence[str | Path],
    *,
    out: str | Path = "reconstruction.png",
    mask: str | Path | None = None,
    mask_kind: MaskKind | None = None,
    mask_ratio: float | None = None,
    seed: int | None = None,
    count: int = 8,
    device: str = "auto",
    crop_pct: float | None = None,
    quiet: bool = False,
    **given: Unpack[Given],
) -> Reconstructed:
    """Mask patches of images, reconstruct them, and draw both.

    Args:
        weights: whatever `mae.load` takes; they need a decoder.
        images: image files, and folders from each of which some images are taken; or one of them.
        out: .png, or .html for a page with the measured errors.
        mask: image file of the mask of every image, see `read_mask`; none: drawn for each.
        mask_kind: how the hidden patches are chosen; none: as in training.
        mask_ratio: fraction of the patches that is hidden; none: as in training.
        seed: key of the masks; none: 0.
        count: number of images from each folder, evenly spread.
        device: see `choose_device`.
        crop_pct: fraction of an image that is kept, see `ModelConfig`; none: as in the weights.
        quiet: show no progress and no notes.
        given: settings that the weights do not store, see `Given`.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    out, mask = Path(out), None if mask is None else Path(mask)
    images = [images] if isinstance(images, str | Path) else images
    if out.suffix not in (".png", ".html"):
        raise ConfigError(f"out: expected a name ending in .png or .html, got {out}")
    given_files = [Path(path) for path in (*images, *([mask] if mask else []))]
    if any(out.exists() and path.exists() and out.samefile(path) for path in given_files):
        raise ConfigError(f"out: {out} is one of the images; choose another name")
    drawn = {"mask_kind": mask_kind, "mask_ratio": mask_ratio}
    if mask is not None:
        refuse_without_effect("a given --mask", "drawn masks", **drawn, seed=seed)
    with Progress(quiet=quiet) as progress:
        model, notes = open_model(weights, crop_pct=crop_pct, **given)
        for note in notes:
            progress.note(note)
        report_view(model.config, log=progress.note)
    model = model.to(choose_device(device)).eval()
    asked: dict[str, Any] = {name: value for name, value in drawn.items() if value is not None}
    if mask_kind is not None and mask_kind != model.objective.mask_kind:
        asked["mask_block"] = ObjectiveConfig().mask_block
    model.objective = replace(model.objective, **asked)
    model.objective.require_grid(model.config.grid)
    stored, names, bad = _read(images, model, count=count)
    if mask is None:
        ids = np.arange(len(names), dtype=np.int64)
        hides = mask_noise(ids, model.objective, grid=model.config.grid, seed=seed or 0)
    else:
        hides = read_mask(mask, model.config).flatten().expand(len(names), -1)
    panels = reconstruction_panels(model, stored, hides=hides)
    psnr = hidden_psnr(model, [(stored, hides)])
    if out.suffix == ".html":
        content = html_page(f"Reconstructions by {weights}", _page(panels, names, psnr))
    else:
        content = png_bytes(reconstruction_strip(panels))
    write_atomic(out, content)
    return Reconstructed(out, tuple(names), bad, panels.caption, psnr.psnr, psnr.about)


def _read(
    paths: Sequence[str | Path], model: MaskedAutoencoder, *, count: int
) -> tuple[Tensor, list[str], dict[str, str]]:
    """Read the images in the format the model was trained on: B C H W of the stored dtype."""
    images, names = [], []
    bad: dict[str, str] = {}
    for path in paths:
        folder = Path(path).is_dir()
        source = open_source(path) if folder else FolderSource.of_files([path])
        for read in evaluation_batches(
            model.encoder, source, evenly(range(len(source)), count), batch=count
        ):
            images.append(read.images)
            names += [source.name(i) for i in read.ids.tolist()]
            bad |= {image.name: image.reason for image in read.bad}
    if not names:
        first = "".join(f"; the first, {name}: {reason}" for name, reason in [*bad.items()][:1])
        raise DataError(f"images: none of {len(bad)} can be read{first}. Name others")
    return torch.cat(images), names, bad


def _page(panels: Panels, names: Sequence[str], psnr: HiddenPsnr) -> Iterator[Element]:
    yield element("p", "From left to right: " + "; ".join(STAGES.values()) + ".")
    yield element("p", panels.caption, class_="quiet")
    for name, cells in zip(names, panels.cells, strict=True):
        image = image_element(tile(cells[None]), f"{name} in four stages")
        yield element("figure", image, element("figcaption", name), class_="strip")
    yield results_table(psnr.to_dict())
