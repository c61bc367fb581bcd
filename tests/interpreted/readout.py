"""Drafts by fused kernels equal those of the plain readout, head and arg max: few and many rows, ties, a shortlist."""

import torch

from bench.shortlist import Head
from ptp import readout_kernels
from ptp.draft import by_arg_max
from ptp.sequential import SequentialReadout

CUDA = torch.get_default_device().type == "cuda"
DTYPE, FAR = (torch.bfloat16, 0.05) if CUDA else (torch.float32, 1e-5)


def check(rows, hidden, width, listed, vocab):
    """A random readout and head; rows of head inputs, some of them with two likeliest ids."""
    readout = SequentialReadout(hidden, width)
    readout.widen.data.normal_(0, 0.2)
    readout = readout.to(DTYPE).requires_grad_(False)
    embedding, before = torch.randn(vocab, hidden, dtype=DTYPE) / 20, torch.randint(0, vocab, (rows, 1))
    said = torch.randn(rows, 2, hidden, dtype=DTYPE)[:, 1:]  # rows apart, as of one slot of several
    expected = readout(said, embedding[before])
    found = readout_kernels.corrected(readout, embedding, said, before)
    assert (found - expected).abs().max() < FAR * 2, (rows, hidden, (found - expected).abs().max())
    ids = torch.randperm(vocab)[:listed].sort().values if listed < vocab else None
    head = Head(torch.randn(listed, hidden, dtype=DTYPE), ids)
    head.weight[listed - 3] = head.weight[1] = head.weight[1].abs().to(DTYPE)
    said[0] = head.weight[1] / 4  # the likeliest, and listed twice
    logits = (said.float() @ head.weight.float().T)
    draft, (tokens, scores) = by_arg_max(logits).named(head), readout_kernels.likeliest(said, head)
    assert torch.equal(tokens, draft.tokens), (tokens, draft.tokens)
    assert torch.allclose(scores.sigmoid(), draft.score.sigmoid(), atol=1e-5, rtol=0), (scores, draft.score)
    broken, _ = readout_kernels.likeliest(torch.full_like(said, torch.nan), head)  # whose embeddings are looked up next
    assert torch.isin(broken, torch.arange(vocab) if ids is None else ids).all(), broken
    assert not readout_kernels.arrived(said.device).any(), "a launch left its counter behind"


torch.manual_seed(0)
with torch.inference_mode():
    check(1, 48, 20, 70, 100)
    check(2, 64, 32, 100, 100)
    check(2, 96, 33, 300, 700)
    check(1, 576, 512, 1000, 3000)
print("checked")
