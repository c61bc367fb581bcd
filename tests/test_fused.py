"""The Triton kernels against the plain forward and draw, in Triton's interpreter on a CPU; and their tiles' sizes."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.cache import Cache
from bench.config import Config
from bench.model import Transformer
from bench.zoo.synthetic import SHAPES

pytest.importorskip("triton")
SCRIPTS = Path(__file__).parent / "interpreted"
SHARED = 227 << 10  # bytes of a Hopper multiprocessor that one program may have
SMOLLM2_135M = Config(vocab=49152, hidden=576, layers=30, heads=9, kv_heads=3, head_dim=64, ffn=1536, context=2048,
                      tied=True)


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_interpreted(script):
    """Each script asserts; it runs apart because the interpreter is chosen when Triton is imported."""
    root = Path(__file__).parents[1]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checked" in done.stdout


def shared(tile, swiglu):
    """Bytes of shared memory that Triton takes for a tile of 16-bit numbers, as compiled for Hopper.

    The rows and the weight, two with swiglu, of every stage; tiles of fewer than 64 rows multiply from registers, so
    one stage fewer waits.
    """
    waiting = tile.stages - (tile.rows < 64)
    return waiting * (tile.rows + tile.columns * (2 if swiglu else 1)) * tile.inner * 2


@pytest.mark.parametrize("config", [*SHAPES.values(), SMOLLM2_135M], ids=[*SHAPES, "smollm2-135m"])
@pytest.mark.parametrize("rows", [1, 16, 17, 64, 128, 300])
@pytest.mark.parametrize("sets", [1, 2])
def test_tiles_fit_in_shared_memory(config, rows, sets):
    from bench.fused import Product

    with torch.device("meta"):
        model = Transformer(replace(config, layers=1))
    block = model.blocks[0]
    for weight in (block.qkv, block.out, block.gate_up, block.down, model.head):
        swiglu = weight is block.gate_up
        tile = Product(rows, weight, weight, swiglu=swiglu).tile(sets * rows, len(weight) // (2 if swiglu else 1))
        assert shared(tile, swiglu) <= SHARED, (tile, weight.shape)


@pytest.mark.parametrize(("rows", "shape", "patient", "expected"), [
    (1, (576, 1536), False, {"PDL": 1, "launch_pdl": True}),
    (64, (576, 1536), True, {"PDL": 3, "launch_pdl": True}),
    (16, (4096, 4096), True, {"PDL": 0}),
    (17, (4096, 4096), True, {"PDL": 2, "launch_pdl": True}),
    (64, (49152, 576), False, {"PDL": 0}),
])
def test_who_comes_early(monkeypatch, rows, shape, patient, expected):
    from bench import fused

    weight = torch.empty(shape, device="meta")
    assert fused.overlap(rows, weight, patient) == {"PDL": 0}  # no Hopper
    monkeypatch.setattr(fused, "overlaps", lambda device: True)
    assert fused.overlap(rows, weight, patient) == expected


def test_those_behind_out_and_down_come_late():
    from bench.fused import FusedForward

    with torch.device("meta"):
        model = Transformer(replace(SMOLLM2_135M, layers=2))
    products = FusedForward(model, Cache(model.config, 1, 64, model.norm)).products(1, None)
    assert [product.patient for product in products] == [False, True, False, True] * 2
    assert [product.ahead for product in products] == [*products[2:], None, None]
