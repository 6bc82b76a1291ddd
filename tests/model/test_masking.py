from __future__ import annotations

import pytest
import torch

from mae.model.masking import gather, random_masking


def test_the_patches_of_smallest_noise_are_kept(generator):
    noise = torch.rand(2, 15, generator=generator)

    masking = random_masking(noise, num_keep=4)

    assert masking.mask.sum(dim=1).tolist() == [11, 11]
    for row, hidden in zip(noise, masking.mask, strict=True):
        assert row[~hidden].max() < row[hidden].min()


def test_kept_and_hidden_are_a_partition_that_ids_restore_undoes(generator):
    noise = torch.rand(2, 15, generator=generator)
    patches = torch.arange(2 * 15 * 7).view(2, 15, 7)

    masking = random_masking(noise, num_keep=4)

    shuffled = torch.cat(
        [gather(patches, masking.ids_keep), gather(patches, masking.ids_hidden)], 1
    )
    assert torch.equal(gather(shuffled, masking.ids_restore), patches)
    assert not masking.mask.gather(1, masking.ids_keep).any()
    assert masking.mask.gather(1, masking.ids_hidden).all()


def test_masking_is_permutation_equivariant(generator):
    noise = torch.rand(2, 15, generator=generator)
    order = torch.randperm(15, generator=generator)

    masking = random_masking(noise, num_keep=4)
    permuted = random_masking(noise[:, order], num_keep=4)

    assert torch.equal(permuted.mask, masking.mask[:, order])
    assert torch.equal(order[permuted.ids_keep], masking.ids_keep)
    assert torch.equal(order[permuted.ids_hidden], masking.ids_hidden)
    assert torch.equal(permuted.ids_restore, masking.ids_restore[:, order])


@pytest.mark.parametrize("count", [15, 64, 1000])  # sorts of other lengths take other paths
def test_ties_keep_the_patch_that_comes_first(count):
    noise = torch.zeros(2, count)
    noise[1, ::3] = -1.0

    masking = random_masking(noise, num_keep=count // 2)

    first = list(range(count))
    assert masking.ids_keep[0].tolist() == first[: count // 2]
    assert masking.ids_hidden[0].tolist() == first[count // 2 :]
    low, high = first[::3], [i for i in first if i % 3]
    assert masking.ids_restore[1].argsort().tolist() == low + high


def test_an_image_is_masked_by_its_own_noise_alone(generator):
    noise = torch.rand(2, 15, generator=generator)

    together, alone = random_masking(noise, num_keep=4), random_masking(noise[1:], num_keep=4)

    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a[1:], b)


def test_no_images_have_no_tokens() -> None:
    ids = torch.zeros(0, 3, dtype=torch.int64)

    assert gather(torch.zeros(0, 5, 2), ids).shape == (0, 3, 2)
