"""Rows times a weight against float64; what oneDNN's layout may not change."""

import gc

import pytest
import torch

from bench.product import LAYOUTS, SERVED, product

ERROR = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float64: 1e-12}
serving = pytest.mark.parametrize("dtype", sorted(SERVED, key=str))
needs_avx512 = pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="seen with AVX-512 only")


def drawn(*shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("shape", [(40,), (1, 40), (3, 40), (2, 4, 40), (2, 0, 40), (1, 70, 40)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("graded", [False, True])
def test_it_is_the_product(dtype, shape, biased, graded):
    x, weight = drawn(*shape, dtype=dtype), drawn(24, 40, dtype=dtype, seed=1) / 40**0.5
    bias = drawn(24, dtype=dtype, seed=2) if biased else None
    with torch.set_grad_enabled(graded):
        ours = product(x, weight, bias)
    expected = x.double() @ weight.double().T + (bias.double() if bias is not None else 0)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), expected, atol=ERROR[dtype], rtol=ERROR[dtype])


def test_the_product_is_in_the_dtype_of_the_rows():
    x, weight = drawn(5, 40, dtype=torch.float32), drawn(24, 40, dtype=torch.bfloat16, seed=1)
    for graded in (False, True):
        with torch.set_grad_enabled(graded):
            torch.testing.assert_close(product(x, weight), x @ weight.float().T, atol=1e-4, rtol=1e-4)


@needs_avx512
@serving
@torch.inference_mode()
def test_a_row_keeps_its_bits_whatever_the_number_of_rows(dtype):
    weight, x = drawn(64, 1536, dtype=dtype), drawn(300, 1536, dtype=dtype, seed=1)  # one row alone would not, so deep
    whole = product(x, weight.clone())
    laid = weight.clone()
    for rows in (*range(1, 20), 31, 33, 64, 256):
        assert torch.equal(product(x[:rows], laid), whole[:rows])


@serving
def test_a_layout_follows_its_weight(dtype):
    x, weight = drawn(5, 40, dtype=dtype), torch.nn.Parameter(drawn(24, 40, dtype=dtype, seed=1))
    with torch.no_grad():
        before = product(x, weight)
        weight.mul_(2)  # as an optimizer does
        assert torch.equal(product(x, weight), 2 * before)


@serving
def test_a_layout_is_made_once_and_goes_with_its_weight(dtype):
    gc.collect()
    x, weight, before = drawn(5, 40, dtype=dtype), drawn(24, 40, dtype=dtype, seed=1), len(LAYOUTS)
    with torch.no_grad():
        product(x, weight)
        layout = LAYOUTS[weight]
        product(x[:2], weight)
    assert LAYOUTS[weight] is layout
    assert len(LAYOUTS) == before + 1
    del weight
    gc.collect()
    assert len(LAYOUTS) == before


@serving
def test_weights_made_in_inference_mode(dtype):
    with torch.inference_mode():
        x, weight = drawn(5, 40, dtype=dtype), drawn(24, 40, dtype=dtype, seed=1)
        assert torch.equal(product(x, weight), product(x, weight))


def test_gradients_flow_through_frozen_weights():
    x, weight = drawn(5, 40, dtype=torch.float32).requires_grad_(), drawn(24, 40, dtype=torch.float32, seed=1)
    product(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(5, -1))
