"""The recipe `folder` on real files: what is read of them, and what a run that exists keeps."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae.config.run import PretrainConfig
from mae.config.serialize import to_dict
from mae.data.sources.open import open_source
from mae.data.sources.source import ArraySource, FolderSource
from mae.data.survey import side_and_channels
from mae.errors import DataError
from mae.recipes.folder import FOLDER, with_fields
from mae.train.choice import choose_config


def write(folder: Path, name: str, height: int, width: int, mode: str = "RGB") -> None:
    Image.new(mode, (width, height)).save(folder / name)


def choose(source: FolderSource | ArraySource, **how: object) -> tuple[PretrainConfig, list[str]]:
    lines: list[str] = []
    given = {"kept": frozenset[str](), "log": lines.append, "device": "cpu", **how}
    return choose_config(FOLDER, source, **given), lines  # type: ignore[arg-type]


def test_sizes_are_the_median_of_the_headers_that_can_be_read(tmp_path: Path) -> None:
    for number, (height, width) in enumerate([(90, 40), (30, 70), (64, 64)]):
        write(tmp_path, f"{number}.png", height, width, mode="L" if number else "RGB")
    (tmp_path / "broken.jpg").write_bytes(b"no image at all")

    assert side_and_channels(FolderSource(tmp_path)) == (40, 3)
    assert side_and_channels(ArraySource(np.zeros((4, 50, 36, 6), np.uint16))) == (36, 6)
    with pytest.raises(DataError, match="no readable image in 1: broken"):
        side_and_channels(FolderSource(tmp_path, files=["broken.jpg"]))


def test_a_few_headers_of_many_are_read(tmp_path: Path) -> None:
    class Counting(ArraySource):
        reads = 0

        def read(self, index: int) -> np.ndarray:
            self.reads += 1
            return super().read(index)

    source = Counting(np.zeros((1_000, 8, 12), np.uint8))

    assert side_and_channels(source) == (8, 1)
    assert source.reads == 200


def test_tiffs_of_six_channels_and_16_bits_have_a_size(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros((70, 90, 6), np.uint16))
    (tmp_path / "a.npy").write_bytes(file.getvalue())

    config, lines = choose(FolderSource(tmp_path))
    assert config.model.image_size == (64, 64)
    assert lines[0].startswith("folder: 1 images, 70 pixels along their shorter side, 6 channels")


def test_a_run_that_exists_keeps_its_choice_whatever_would_be_chosen_now(tmp_path: Path) -> None:
    before = with_fields(FOLDER, {"model.image_size": (48, 48), "batch": 12, "optim.lr": 0.5})
    begun = {"recipe": "folder", "config": to_dict(before)}
    source = ArraySource(np.zeros((30, 28, 28), np.uint8))

    config, lines = choose(source, begun=begun)
    assert (config, lines) == (before, [])
    kept, _ = choose(source, begun=begun, kept={"batch"})
    assert kept == with_fields(before, {"batch": FOLDER.batch})
    other, lines = choose(source, begun={**begun, "recipe": "demo"})
    assert other.model.image_size == (28, 28) and len(lines) == 3


def test_another_recipe_is_left_as_it_is(tmp_path: Path) -> None:
    assert choose(ArraySource(np.zeros((5, 2, 12), np.uint8)), kept=None) == (FOLDER, [])


@pytest.mark.slow
def test_the_built_in_images_are_shown_whole_at_their_size() -> None:
    config, lines = choose(open_source("fashion-mnist"))  # type: ignore[arg-type]

    assert config.model.image_size == (28, 28)
    assert "30,000 images, 28 pixels" in lines[0]
