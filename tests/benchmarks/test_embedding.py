"""Features in bf16 are compared with those in float32, and every image is embedded in both."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks import embedding
from benchmarks.embedding import difference, main

from mae.model.create import create
from tests.model.tiny import tiny_config


def test_the_largest_difference_and_the_smallest_cosine_are_said() -> None:
    single = np.array([[3, 4], [1, 0]], np.float32)
    half = np.array([[3, 4], [1, 1]], np.float32)

    said = difference(single, half)

    assert said.endswith("largest difference 1 (largest value 4), smallest cosine 0.707107")


def test_both_precisions_embed_all_images(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedding, "create", lambda _: create(tiny_config(grid=(4, 4))))
    monkeypatch.setattr(embedding, "print_processor", dict)

    main(["7", "--emulated"])

    float32, bf16, beside = capsys.readouterr().out.splitlines()
    assert "float32: " in float32 and "bf16: " in bf16 and "images/s, 7 images" in bf16
    assert float(beside.rpartition(" ")[2]) > 0.99
