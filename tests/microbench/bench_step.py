"""Microbenchmarks (`make microbench`): a step by its phases, and the loop against one written by hand.

The target is $TARGET, by default the suite's; on a GPU if there is one.
"""

import os
import statistics
from functools import partial

import pytest
import torch

from bench import zoo
from bench.forward import forward_for
from bench.graphs import prepared, recorded
from bench.loop import Decoder, timed
from bench.methods import METHODS, parse_one
from bench.noise import NoiseKey
from bench.sampling import Law
from bench.sequences import Prompt, Sequences
from bench.suite import DTYPES, best_dtype, find_device
from bench.timing import PHASES, synchronize
from bench.tree import Tree, chain, chain_parents

TOKENS = 256 if torch.cuda.is_available() else 32  # on a GPU one step more runs before the host learns of the end
TEXT = "A lighthouse keeper counts the ships: one ship, two ships, three ships, four"
LOOPS_MAY_DIFFER = 0.02, 0.015  # share of the time per token, or milliseconds: whichever is more


@pytest.fixture(scope="module")
def target():
    device = find_device("auto")
    return zoo.load(os.environ.get("TARGET", "smollm2-135m"), device, DTYPES[best_dtype(device)])


@pytest.fixture(scope="module")
def sequences(target):
    return Sequences(target.model, batch=1, context=len(prompt(target).ids) + TOKENS, widest=64)


def prompt(target) -> Prompt:
    return Prompt(target.tokenizer.encode(TEXT), NoiseKey(0, "microbench"))


def decoder(name: str, sequences: Sequences) -> Decoder:
    entry = parse_one(name)
    return Decoder(METHODS[entry.name](sequences, Law(), entry.settings), sequences)


class ByHand:
    """Greedy decoding for itself alone: the whole step is one program; no events, no noise, no log."""

    def __init__(self, sequences: Sequences):
        self.sequences, device = sequences, sequences.device
        self.forward = forward_for(sequences.target, sequences.cache)
        self.token, self.root = (torch.zeros(shape, dtype=torch.int64, device=device) for shape in ((1, 1), (1,)))
        self.parents, self.structure = chain_parents(1, 1, device), chain(1, 1, device)
        [self.step] = recorded(prepared([self.advance], device), device)

    def advance(self) -> None:
        tree = Tree(self.token, self.parents, depth=0, is_chain=True, structure=self.structure)
        self.token.copy_(self.forward(tree, self.root).logits.argmax(-1))
        self.root += 1

    @torch.inference_mode()
    def decode(self, start: int, steps: int) -> None:
        """From position `start`: what the tokens are makes no difference to the time."""
        self.root.fill_(start)
        for _ in range(steps):
            self.step()


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("method", ["autoregressive", "prompt_lookup"])
def test_phase(benchmark, target, sequences, method, phase):
    """One phase of a step in the middle of a text, after those before it."""
    one, place = decoder(method, sequences), PHASES.index(phase)
    one.decode([prompt(target)], TOKENS)
    phases = prepared(one.steps[0].phases(), sequences.device)
    steps = [work for phase in phases for work in recorded([phase], sequences.device)]  # each with memory of its own

    def before() -> None:
        sequences.fill([prompt(target)], TOKENS, frozenset())
        for earlier in steps[:place]:
            earlier()
        synchronize(sequences.device)

    def measured() -> None:
        steps[place]()
        synchronize(sequences.device)

    with torch.inference_mode():
        benchmark.pedantic(measured, setup=before, rounds=30, warmup_rounds=3)


def test_loops_side_by_side(benchmark, target, sequences):
    """Autoregressive decoding in the loop and by hand, in turns. On a GPU they may hardly differ."""
    ours, hand, rounds = decoder("autoregressive", sequences), ByHand(sequences), []
    work = partial(hand.decode, len(prompt(target).ids) - 1, TOKENS)

    def both() -> None:
        wall = ours.decode([prompt(target)], TOKENS).wall_ms
        rounds.append((wall / TOKENS, timed(work, sequences.device) / TOKENS))

    benchmark.pedantic(both, rounds=10, warmup_rounds=2)
    loop, alone = (statistics.median(times) for times in zip(*rounds[2:], strict=True))
    benchmark.extra_info |= {"loop_ms_per_token": loop, "by_hand_ms_per_token": alone}
    print(f"\nloop {loop:.3f} ms per token, by hand {alone:.3f} ms per token ({loop / alone - 1:+.1%})")
    if sequences.device.type == "cuda":
        share, least = LOOPS_MAY_DIFFER
        assert loop - alone <= max(share * alone, least)
