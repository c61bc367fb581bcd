"""Matrices in 4 bits: how much is lost, what it costs, and shapes that do not fit."""

import pytest
import torch

from bench.quantisation import BORDERS, GROUP, LEVELS, SHARES, best_scales, pack, unpack

WIDEST = float(LEVELS.diff().max())  # from level to level


def normal(*shape, seed=0):
    """Rows of very different sizes."""
    sizes = torch.logspace(-6, 5, shape[0])[:, None]
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * sizes


def kept(matrix):
    return unpack(*pack(matrix))


def lost(matrix):
    """The error relative to the matrix."""
    return float((kept(matrix) - matrix).norm() / matrix.norm())


def test_levels_are_best_for_normal_numbers():
    """Lloyd's two conditions: each level is the mean of what falls to it, the borders lie half-way."""
    assert len(LEVELS) == 16
    assert torch.equal(LEVELS, -LEVELS.flip(0))
    normal = torch.distributions.Normal(0, 1)
    ends = torch.cat([torch.tensor([-9.0]), BORDERS, torch.tensor([9.0])]).double()
    density, below = normal.log_prob(ends).exp(), normal.cdf(ends)
    assert torch.allclose(-density.diff() / below.diff(), LEVELS.double(), atol=2e-3)


@pytest.mark.parametrize("shape", [(40, 128), (70, 24), (3, 2), (1, 30), (131, 50)])
def test_four_and_a_half_bits_a_number(shape):
    codes, scales = pack(normal(*shape))
    count = shape[0] * shape[1]
    assert (codes.dtype, codes.shape) == (torch.uint8, (shape[0], shape[1] // 2))
    assert (scales.dtype, scales.shape) == (torch.bfloat16, (-(-count // GROUP),))
    assert kept(normal(*shape)).shape == shape


@pytest.mark.parametrize("shape", [(40, 128), (70, 24), (1, 30), (131, 50)])
def test_a_group_loses_no_more_than_by_the_scale_of_its_maximum(shape):
    matrix = normal(*shape)
    for group, back in zip(matrix.flatten().split(GROUP), kept(matrix).flatten().split(GROUP), strict=True):
        scale = group.abs().max() / LEVELS[-1]
        assert (group - back).square().sum() <= len(group) * (1.01 * scale * WIDEST / 2) ** 2


def test_the_error_of_normal_numbers_is_a_thirteenth():
    matrix = torch.randn(256, 256, generator=torch.Generator().manual_seed(1))
    assert 0.074 < lost(matrix) < 0.078


def test_trying_scales_pays():
    matrix = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    groups = matrix.view(-1, GROUP)
    whole = groups.abs().amax(1, keepdim=True) / LEVELS[-1]
    plain = LEVELS[torch.bucketize(groups / whole, BORDERS)] * whole
    assert lost(matrix) < 0.94 * float((plain - groups).norm() / groups.norm())
    shares = best_scales(groups).float() / whole
    assert SHARES.min() * 0.99 < shares.min() < 0.9 < 1.0 < shares.max() < SHARES.max() * 1.01


def test_every_number_takes_its_nearest_level():
    matrix = normal(9, 64)
    scales = pack(matrix)[1].float().repeat_interleave(GROUP).view(9, 64)
    nearest = (matrix[..., None] - LEVELS * scales[..., None]).abs().amin(-1)
    assert torch.allclose((kept(matrix) - matrix).abs(), nearest, rtol=1e-4)


@pytest.mark.parametrize("shape", [(40, 128), (700, 24), (1, 30), (131, 50)])
def test_packing_twice_loses_nothing_more(shape):
    """What a training measures is what its file gives: it packs what came back from packing."""
    for seed in range(5):
        once, twice = pack(normal(*shape, seed=seed)), pack(kept(normal(*shape, seed=seed)))
        assert all(map(torch.equal, once, twice))


def test_levels_times_a_scale_come_back_as_they_are():
    codes = torch.randint(16, (64, 64), generator=torch.Generator().manual_seed(2))
    codes[:, ::GROUP] = 15  # the top level is in every group
    matrix = LEVELS[codes] * 0.375
    assert torch.equal(kept(matrix), matrix)


def test_zeros_stay_zeros_beside_others():
    matrix = torch.zeros(4, 64)
    matrix[2, 5] = 7.0
    assert not kept(matrix)[[0, 1, 3]].any()
    assert kept(matrix)[2, 5] == pytest.approx(7.0, rel=0.15)


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_no_size_is_too_small_or_too_large(size):
    """Float16 scales would be."""
    assert lost(size * torch.randn(8, 64, generator=torch.Generator().manual_seed(3))) < 0.08


@pytest.mark.parametrize(("width", "fine"), [(97, False), (96, True)])
def test_fine_matrices_and_those_of_odd_width_keep_8_bits(width, fine):
    matrix = normal(64, width)
    codes, scales = pack(matrix, fine)
    back = unpack(codes, scales)
    assert (codes.dtype, codes.shape, scales.shape) == (torch.int8, (64, width), (64, 1))
    assert ((back - matrix).abs() <= 0.501 * matrix.abs().amax(1, keepdim=True) / 127).all()
    assert not unpack(*pack(torch.zeros(3, width), fine)).any()
