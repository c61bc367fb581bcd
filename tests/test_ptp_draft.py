"""Who makes a draft: kernels where they serve, the plain readout, head and draw elsewhere."""

from functools import partial

import pytest
import tiny
import torch

from bench.sampling import Law
from bench.shortlist import Head, Shortlist
from ptp import draft, student
from ptp.decoding import PTP, Settings
from ptp.draft import CHOICE, by_arg_max, drafted, kernels_for

TARGET = tiny.transformer(seed=1)


class Asked:
    """Stands for the module of kernels: does what it promises, and counts."""

    def __init__(self):
        self.counts = {"corrected": 0, "likeliest": 0}

    def corrected(self, readout, embedding, hidden, before):
        self.counts["corrected"] += 1
        return readout(hidden, embedding[before])

    def likeliest(self, hidden, head):
        self.counts["likeliest"] += 1
        found = by_arg_max(head.score(hidden)).named(head)
        return found.tokens, found.score


class OnCuda(torch.Tensor):
    """A tensor that says so."""

    is_cuda = True


def halves(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def test_a_cpu_and_training_have_no_kernels():
    pytest.importorskip("triton")
    said, weight = halves(1, 1, 8), halves(4, 8)
    assert kernels_for(said, weight) is None
    said = said.as_subclass(OnCuda)
    assert kernels_for(said, weight).__name__ == "ptp.readout_kernels"
    assert kernels_for(said, halves(4, 8).requires_grad_()) is None
    assert kernels_for(said.clone().requires_grad_(), weight) is None


@pytest.mark.parametrize(("said", "weight", "serves"), [
    (halves(1, 1, 576), halves(512, 2 * 576), True),
    (halves(2, 1, 576), halves(512, 2 * 576), True),
    (halves(3, 1, 576), halves(512, 2 * 576), False),
    (halves(1, 3, 576), halves(512, 2 * 576), False),
    (halves(1, 1, 960, dtype=torch.float16), halves(16384, 960, dtype=torch.float16), True),
    (halves(1, 1, 960, dtype=torch.float16), halves(16384, 960), False),
    (halves(1, 1, 576, dtype=torch.float32), halves(512, 2 * 576, dtype=torch.float32), False),
    (halves(1, 1, 1024), halves(65536, 1024), True),
    (halves(1, 1, 1032), halves(512, 2 * 1032), False),
    (halves(1, 1, 8), halves(65537, 8), False),
])
def test_kernels_serve_few_half_rows_that_fit(said, weight, serves):
    pytest.importorskip("triton")
    from ptp import readout_kernels

    assert readout_kernels.serves(said, weight) == serves


@pytest.mark.parametrize("way", [*CHOICE, "greedy"])
def test_only_an_arg_max_is_found_by_the_kernel(way, monkeypatch):
    torch.manual_seed(0)
    head, law = Head(torch.randn(6, 8), torch.tensor([1, 3, 4, 7, 8, 11])), Law(1.0)
    said, noise = torch.randn(2, 1, 8), torch.randint(1 << 30, (2, 1))
    plain, asked = drafted(way, said, head, noise, law, 0.2), Asked()
    monkeypatch.setattr(draft, "kernels_for", lambda hidden, weight: asked if weight is head.weight else None)
    found = drafted(way, said, head, noise, law, 0.2)
    assert torch.equal(found.tokens, plain.tokens)
    assert torch.equal(found.score, plain.score)
    assert asked.counts == {"corrected": 0, "likeliest": int(way in ("argmax", "greedy"))}


@pytest.mark.parametrize("law", [Law(), Law(1.0)], ids=["greedy", "sampled"])
def test_every_draft_is_asked_of_the_kernels(law, monkeypatch):
    """One after the other, in every step; drafts and texts stay what they are without."""
    one, k = tiny.random_student(TARGET, sequential=True), 3
    one.shortlist = Shortlist(9)
    work, seen, asked = tiny.groups(1, 1, 2)[0], [], Asked()
    for kernels in (None, asked):
        for module in (draft, student):
            monkeypatch.setattr(module, "kernels_for", lambda *_, kernels=kernels: kernels)
        decoder = tiny.decoder_of(partial(PTP, settings=Settings(k=k, slots=10), drafter=one), TARGET, law, 2)
        raw = decoder.decode(list(work.prompts), 12)
        seen.append((raw.tokens, raw.accepted, decoder.method.drafts, decoder.method.chance))
    assert seen[0][:2] == seen[1][:2]
    assert torch.equal(seen[0][2], seen[1][2])
    assert torch.equal(seen[0][3], seen[1][3])
    assert asked.counts == {"corrected": k * len(raw.rows), "likeliest": k * len(raw.rows)}
