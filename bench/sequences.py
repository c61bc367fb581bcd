"""The state of a batch while it is decoded: tokens, lengths, noise, the target's cache, and the log of its steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.cache import Cache
from bench.errors import BenchError
from bench.mapped import mapped
from bench.model import Transformer
from bench.noise import STREAMS, Noise, NoiseKey, sent
from bench.verify import Evidence, Outcome

MAX_END_IDS = 8
SLACK = 2  # steps that may still run before the host learns that all sequences are done


@dataclass
class Prompt:
    """One sequence to continue."""

    ids: list[int]
    noise: NoiseKey


class Sequences:
    """Device state that every method shares. Position `lengths - 1` holds the root, which is not in the cache yet."""

    def __init__(self, target: Transformer, batch: int, context: int, widest: int):
        """`context`: longest prompt plus answer; `widest`: most rows of any step (they lie behind it in the cache)."""
        self.target, self.batch, self.context, self.widest = target, batch, context, widest
        self.device = device = target.norm.device
        capacity = context + 2 * widest
        target.extend_rope(capacity)
        self.cache = Cache(target.config, batch, capacity, target.norm)
        self.noise = Noise(batch, capacity, device)
        self.tokens = torch.zeros(batch, capacity, dtype=torch.int64, device=device)
        self.lengths = torch.ones(batch, dtype=torch.int64, device=device)
        self.limits = torch.ones_like(self.lengths)
        self.end_ids = torch.full((MAX_END_IDS,), -1, dtype=torch.int64, device=device)
        self.done = torch.zeros(batch, dtype=torch.bool, device=device)
        self.log = StepLog(batch, context + SLACK + 1, device)

    @property
    def root(self) -> Tensor:
        """Position of the last committed token, [B]: also the number of rows in the cache."""
        return self.lengths - 1

    def root_tokens(self) -> Tensor:
        """The last committed token, [B, 1]."""
        return self.tokens.gather(1, self.root[:, None])

    def fill(self, prompts: list[Prompt], max_new_tokens: int, end_ids: frozenset[int]) -> None:
        """Begin anew with these prompts, one a row. Raises BenchError when one is empty or too long."""
        self.end_at(end_ids)
        self.put(list(range(self.batch)), prompts, [max_new_tokens] * self.batch)
        self.log.reset()

    def end_at(self, end_ids: frozenset[int]) -> None:
        """Ids that end a sequence. Raises BenchError when there are too many."""
        if len(end_ids) > MAX_END_IDS:
            raise BenchError(f"at most {MAX_END_IDS} end-of-text ids are supported, got {len(end_ids)}")
        self.end_ids.fill_(-1)
        self.end_ids[: len(end_ids)] = torch.tensor(sorted(end_ids), dtype=torch.int64)

    def put(self, rows: list[int], prompts: list[Prompt], limits: list[int], streams: Sequence[str] = STREAMS) -> None:
        """Begin anew in some rows; `limits`: most new tokens of each, `streams`: the noise that will be read."""
        lengths = [len(p.ids) for p in prompts]
        if not all(lengths):
            raise BenchError("a prompt has no tokens; give it at least one")
        longest, limit = max(zip(lengths, limits, strict=True), key=sum)
        if longest + limit > self.context:
            raise BenchError(f"prompt of {longest} tokens plus {limit} new ones exceeds the context of "
                             f"{self.context}; shorten it or lower --max-new-tokens")
        tokens = torch.zeros(len(rows), self.tokens.shape[1], dtype=torch.int64)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt.ids)] = torch.tensor(prompt.ids)
        at, starts = (sent(torch.tensor(numbers), self.device) for numbers in (rows, lengths))
        self.tokens[at] = sent(tokens, self.device)
        self.lengths[at] = starts
        self.limits[at] = starts + sent(torch.tensor(limits), self.device)
        self.done.index_fill_(0, at, False)  # of a CUDA device, done[at] = False would await all that it has to do
        self.noise.fill([p.noise for p in prompts], at, streams)

    def rest(self, rows: list[int]) -> None:
        """Nothing runs in these rows for a while: they are done, and have no keys that a step would read."""
        at = sent(torch.tensor(rows, dtype=torch.int64), self.device)
        self.done.index_fill_(0, at, True)
        self.lengths.index_fill_(0, at, 1)

    def commit(self, outcome: Outcome) -> None:
        """Append the kept tokens. A sequence that is done keeps its length; what lies behind it is never read.

        Tokens are written by their index, and everything else is as long as the batch: two kernels, or one if no step
        has drafts. (A scatter, compiled, copies all tokens there and back.)
        """
        batch, offsets = (torch.arange(size, device=self.device) for size in outcome.tokens.shape)
        kept = offsets <= outcome.accepted[:, None]
        ended = (outcome.tokens[..., None] == self.end_ids).any(-1) & kept
        self.tokens[batch[:, None], self.lengths[:, None] + offsets] = outcome.tokens
        self.lengths += torch.where(self.done, 0, outcome.accepted + 1)
        self.done |= ended.any(-1) | (self.lengths >= self.limits)
        self.log.add(outcome, self.done)


class StepLog:
    """Per step and sequence, what later tables need; read by the host once, after the loop, but for what is done."""

    def __init__(self, batch: int, steps: int, device: torch.device):
        self.step = torch.zeros(batch, dtype=torch.int64, device=device)  # the same for all
        self.accepted, self.drafted = (torch.zeros(steps, batch, dtype=torch.int64, device=device) for _ in range(2))
        self.evidence = torch.zeros(steps, 3, batch, dtype=torch.float64, device=device)  # excess, variance, tested
        self.done = torch.zeros(steps, batch, dtype=torch.bool, pin_memory=device.type == "cuda")  # on the host
        self.told = mapped(self.done, device)  # the same memory

    @property
    def counts(self) -> Tensor:
        """Accepted and drafted: [steps, 2, B] int64."""
        return torch.stack([self.accepted, self.drafted], 1)

    def reset(self) -> None:
        """Forget all steps."""
        self.step.zero_()
        self.evidence.zero_()

    def add(self, outcome: Outcome, done: Tensor) -> None:
        """Note one step, and tell the host who is `done` [B] bool after it."""
        here = self.step, torch.arange(len(self.step), device=self.step.device)
        self.accepted[here], self.drafted[here], self.told[here] = outcome.accepted, outcome.drafted, done
        if outcome.evidence is not None:
            self.evidence.index_copy_(0, self.step[:1], stacked(outcome.evidence)[None])
        self.step += 1


def stacked(evidence: Evidence) -> Tensor:
    """[3, B] float64."""
    return torch.stack([evidence.excess, evidence.variance, evidence.tested.double()])
