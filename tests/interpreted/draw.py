"""The fused draw equals the plain one of `law(logits)`, bit for bit: ties, both zeros, ends of u and of bins.

So does the fused blurred pick, but for the share: a device rounds its exponentials as it likes.
"""

import random

import torch

from bench import law_kernels
from bench.blur import Held
from bench.sampling import NOISE_BITS, Landing, Law, best, pick
from ptp.bins import Bins

LAST = (1 << NOISE_BITS) - 1
LAWS = (Law(), Law(0.7, 1), Law(0.7, 50), Law(1.3, 5), Law(0.31, 64))


def some_logits(vocab):
    """Rows of many kinds: [6, vocab] float32."""
    logits = torch.randn(6, vocab) * 3
    logits[1] = logits[1].round()  # many ties
    logits[2] = 0.0
    logits[2, 7] = -0.0
    logits[3] = (logits[3] * 2).round() / 2
    logits[3, ::64] += 40  # so few are large that a first guess of where the K largest begin is too high
    logits[4] = logits[4].bfloat16().float()  # what a half-precision head leaves
    logits[5, 3:] = -torch.inf
    return logits


def some_noise(choices):
    """For each row an end of its law and an end of one of its bins: [2, 6] int64."""
    bins = Bins.of(pick(torch.randint(1 << NOISE_BITS, (6,)), choices), choices)
    ends = torch.tensor([0, LAST]).repeat(3)
    return torch.stack([ends[torch.randperm(6)], bins.draw(torch.randint(2, (6,))).noise])


def check(noise, logits, law):
    """Two launches for all of it, against the plain functions."""
    expected, landing = Landing.of(noise, law(logits)), law_kernels.land(noise, logits, law)
    assert torch.equal(landing.ids, expected.ids), (law, noise, expected, landing)
    assert torch.equal(landing.margin, expected.margin), (law, noise, expected, landing)
    width = 2.0 ** -random.choice((40, 4, 0))
    held, found = Held.of(noise, law(logits), width), law_kernels.hold(noise, logits, law, width)
    assert torch.equal(found.ids, held.ids), (law, noise, width, held, found)
    assert torch.allclose(found.share, held.share, rtol=1e-12, atol=1e-15), (law, noise, width, held, found)


torch.manual_seed(0)
random.seed(0)
for law in LAWS:
    for vocab in (1100, 1024, 3000, 40):
        logits = some_logits(vocab)
        check(some_noise(law(logits)), logits.expand(2, 6, vocab), law)
    noise = torch.randint(1 << NOISE_BITS, (6,))
    check(noise, logits, law)
    assert torch.equal(law_kernels.draw(noise, logits, law), pick(noise, law(logits)))  # without a margin
for k, n in ((1, 40), (50, 1100), (63, 64), (5, 1024)):
    logits = some_logits(n).view(2, 3, n)
    assert torch.equal(law_kernels.largest(logits, k), best(logits.cpu(), k).to(logits.device)), (k, n)
check(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3, 40), LAWS[2])
print("checked")
