"""How often rounding alone makes texts diverge: autoregressive decoding against itself, at another number of rows.

A forward over n rows adds up in another order than one over a single row, so a text may change at a near-tie although
nothing is wrong. How often is a property of the model, the dtype and the device; here it is measured.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from scipy.stats import binomtest

from bench.clip import clip
from bench.errors import BenchError
from bench.loop import Decoder, Method
from bench.noise import NoiseKey
from bench.record import Record, digest
from bench.sampling import Law
from bench.sequences import Prompt, Sequences
from bench.tree import Tree, chain
from bench.zoo import Target

Prompts = Mapping[tuple[int | str, int], Sequence[int]]  # (question_id, turn) -> the ids that were continued


@dataclass(frozen=True)
class Padding:
    """`rows` of every step: the root, and padding that sees only itself."""

    rows: int


class PaddedAutoregressive(Method):
    """Autoregressive decoding that pays for `rows` rows and uses one."""

    Settings = Padding

    def __init__(self, sequences, law, settings, drafter=None):
        super().__init__(sequences, law, settings, drafter)
        batch, device, rows = sequences.batch, sequences.device, settings.rows
        self.rows = (rows,)
        self.parents = torch.arange(rows, device=device).repeat(batch, 1)
        self.structure = chain(rows, batch, device, drafts=torch.zeros(batch, dtype=torch.int64, device=device))
        self.padding = torch.zeros(batch, rows - 1, dtype=torch.int64, device=device)

    def propose(self, kind: int) -> Tree:
        """The last committed token, no drafts, and rows of token 0."""
        tokens = torch.cat([self.sequences.root_tokens(), self.padding], 1)
        return Tree(tokens, self.parents, depth=0, is_chain=True, structure=self.structure)


@dataclass(frozen=True)
class Rate:
    """Divergences, and the tokens at which there could have been one: each text up to its first difference."""

    diverged: int
    tokens: int

    def excess(self, null: "Rate") -> float:
        """The chance of so many divergences or more, if they were as frequent as in `null`.

        Exact and one-sided: given their sum, two Poisson counts of equal rates split it binomially, by their tokens
        (Przyborowski and Wilenski, 1940).
        """
        total = self.diverged + null.diverged
        if not total:
            return 1.0
        share = self.tokens / (self.tokens + null.tokens)
        return float(binomtest(self.diverged, total, share, alternative="greater").pvalue)

    def __str__(self) -> str:
        if not self.diverged:
            return f"never in {self.tokens} tokens"
        return f"once in {self.tokens / self.diverged:.0f} tokens"


def shared(text: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False)))


def padded_rate(target: Target, baseline: Iterable[Record], prompts: Prompts, rows: int) -> Rate:
    """Decode what the baseline decoded, in the same batches, padded to `rows` rows, and count divergences.

    Repeats reuse their noise, so that only the first one of each text counts.
    """
    groups: dict[tuple[int, int], dict[int | str, Record]] = defaultdict(dict)
    for record in sorted(baseline, key=lambda r: r.repeat):
        groups[record.turn, record.group].setdefault(record.question_id, record)
    work = [list(group.values()) for group in groups.values()]
    settings = work[0][0].settings
    context = max(r.prompt_tokens for group in work for r in group) + settings["max_new_tokens"]
    diverged = tokens = 0
    for size in sorted({len(group) for group in work}):
        sequences = Sequences(target.model, size, context, widest=rows)
        decoder = Decoder(PaddedAutoregressive(sequences, law_of(settings), Padding(rows)), sequences)
        for group in (group for group in work if len(group) == size):
            for record, text in zip(group, decode(decoder, target, group, prompts), strict=True):
                diverged += text != record.tokens
                tokens += shared(text, record.tokens) + (text != record.tokens)
    return Rate(diverged, tokens)


def decode(decoder: Decoder, target: Target, group: Sequence[Record], prompts: Prompts) -> list[list[int]]:
    """The texts of one batch, by the settings of its records."""
    settings = group[0].settings
    ends, limit = frozenset() if settings["ignore_eos"] else target.end_ids, settings["max_new_tokens"]
    batch = [Prompt(prompt_of(r, prompts), NoiseKey(settings["seed"], r.question_id, r.turn))
             for r in group]
    raw = decoder.decode(batch, limit, ends)
    return [clip(text, [step[i] for step in raw.accepted], limit, ends).tokens for i, text in enumerate(raw.tokens)]


def prompt_of(record: Record, prompts: Prompts) -> list[int]:
    """What a record continued. BenchError where its prompt was another."""
    ids = prompts.get((record.question_id, record.turn))
    if ids is None or len(ids) != record.prompt_tokens or record.prompt not in ("", digest(ids)):
        raise BenchError(f"question {record.question_id}, turn {record.turn} was measured with another prompt, of "
                         f"{record.prompt_tokens} tokens: judge a run with its own questions")
    return list(ids)


def law_of(settings: Mapping) -> Law:
    """The law that a record was drawn by."""
    return Law(settings["temperature"], settings["top_k"], settings["top_p"])
