"""The fused draw equals `pick(noise, law(logits))`, id for id: ties, zeros of both signs, both ends of the noise."""

import torch

from bench import law_kernels
from bench.sampling import NOISE_BITS, Law, pick

torch.manual_seed(0)
for vocab in (1100, 1024, 3000):
    for law in (Law(), Law(0.7, 50), Law(1.3, 5), Law(0.31, 64)):
        logits = torch.randn(6, vocab) * 3
        logits[1] = logits[1].round()  # many ties
        logits[2] = 0.0
        logits[2, 7] = -0.0
        logits[3] = (logits[3] * 2).round() / 2
        noise = torch.randint(0, 1 << NOISE_BITS, (6,))
        noise[0], noise[4] = 0, (1 << NOISE_BITS) - 1
        expected, drawn = pick(noise, law(logits)), law_kernels.draw(noise, logits, law)
        assert torch.equal(expected, drawn), (vocab, law, expected, drawn)
print("checked")
