from __future__ import annotations

import torch

from mae.model.positions import resize_positions, sincos_positions


def test_a_grid_that_is_not_square_is_a_part_of_the_square_one():
    table = sincos_positions(24, (3, 5))
    square = sincos_positions(24, (5, 5))

    assert table.shape == (1, 1 + 15, 24)
    assert table.dtype == torch.float32
    assert torch.equal(table, square[:, : 1 + 15])  # the first three rows of five columns


def test_the_first_half_encodes_the_column_and_the_second_the_row():
    plane = sincos_positions(24, (3, 5))[0, 1:].view(3, 5, 24)

    assert torch.equal(plane[0, :, :12], plane[2, :, :12])
    assert torch.equal(plane[:, 0, 12:], plane[:, 4, 12:])
    # The first frequency is 1: sin and cos of the place itself.
    places = torch.arange(5, dtype=torch.float64)
    assert torch.equal(plane[1, :, 0], places.sin().float())
    assert torch.equal(plane[:, 1, 12 + 6], places[:3].cos().float())


def test_the_cls_row_is_zero():
    assert torch.equal(sincos_positions(24, (3, 5))[:, 0], torch.zeros(1, 24))


def test_the_same_grid_gives_the_table_itself():
    table = sincos_positions(24, (3, 5))

    assert resize_positions(table, grid_from=(3, 5), grid_to=(3, 5)) is table


def test_resizing_is_bicubic_in_each_direction_and_leaves_cls_alone(generator):
    table = torch.randn(1, 1 + 15, 24, generator=generator)

    resized = resize_positions(table, grid_from=(3, 5), grid_to=(4, 7))

    assert resized.shape == (1, 1 + 28, 24)
    assert torch.equal(resized[:, 0], table[:, 0])
    # A dimension at a time, as a matrix made from the rows of an identity.
    down, across = (
        torch.nn.functional.interpolate(
            torch.eye(a)[:, None, :, None].expand(a, 1, a, 2).clone(), size=(b, 2), mode="bicubic"
        )[:, 0, :, 0].T
        for a, b in ((3, 4), (5, 7))
    )
    plane = table[0, 1:].view(3, 5, 24)
    expected = torch.einsum("ah,bw,hwd->abd", down, across, plane)
    torch.testing.assert_close(resized[0, 1:].view(4, 7, 24), expected, rtol=0, atol=1e-5)


def test_a_table_resized_to_its_own_size_is_what_it_was(generator):
    # Exported graphs of any image size resize always, of the trained size too.
    table = torch.randn(1, 3 * 5, 24, generator=generator)

    plane = table.view(1, 3, 5, 24).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        plane, size=(3, 5), mode="bicubic", align_corners=False
    )

    assert torch.equal(resized, plane)
