"""Windows over an image: every pixel covered, overlaps averaged."""

from __future__ import annotations

import torch
from torch import Tensor

from mae.evaluation.dense.segment_inference import Windows, segment_logits, window_starts


def test_the_last_window_ends_with_the_image() -> None:
    assert window_starts(10, 4, 3) == [0, 3, 6]
    assert window_starts(11, 4, 3) == [0, 3, 6, 7]
    assert window_starts(4, 4, 3) == window_starts(2, 4, 3) == [0]


def test_logits_are_averaged_where_windows_overlap() -> None:
    calls: list[tuple[int, ...]] = []

    def network(window: Tensor) -> Tensor:
        calls.append(tuple(window.shape))
        return torch.full((1, 2, *window.shape[-2:]), float(len(calls)))

    found = segment_logits(network, torch.zeros(1, 3, 2, 5), windows=Windows((2, 3), (2, 2)))

    # Windows 1 and 2 over columns 0 to 2 and 2 to 4.
    assert calls == [(1, 3, 2, 3)] * 2
    assert found[0, 0].tolist() == [[1, 1, 1.5, 2, 2]] * 2


def test_windows_of_a_function_of_each_pixel_equal_the_whole_image() -> None:
    image = torch.rand(1, 3, 23, 17)

    def network(window: Tensor) -> Tensor:
        return torch.cat([window.sum(1, keepdim=True), window[:, :1]], dim=1)

    windows = segment_logits(network, image, windows=Windows((8, 6), (5, 4)))

    torch.testing.assert_close(windows, segment_logits(network, image))


def test_an_image_smaller_than_a_window_is_seen_whole() -> None:
    image = torch.rand(1, 3, 5, 7)

    found = segment_logits(lambda x: x, image, windows=Windows((8, 8), (4, 4)))

    assert torch.equal(found, image)
