"""Random float64 models, small enough for hundreds of decodings a minute, and every registered method on top of them.

    target = tiny.transformer(seed=0)
    texts = tiny.decode(tiny.registered("prompt_lookup", target), target, law, groups)

A new method without a trained part is found in `bench.methods.METHODS` by itself; one that loads something needs a
line in `TRAINED`: what it would have loaded, made here at random.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from baselines.draft_model import Settings as DraftSettings
from baselines.medusa import Heads
from baselines.medusa import Settings as MedusaSettings
from baselines.prompt_lookup import Settings as LookupSettings
from bench.clip import clip
from bench.config import Config
from bench.loop import Decoder, Method, Raw
from bench.methods import METHODS
from bench.model import Transformer
from bench.noise import NoiseKey
from bench.sampling import MASS_BITS, Choices, Law
from bench.sequences import Prompt, Sequences
from ptp.decoding import Settings as PTPSettings
from ptp.student import Design, Student

torch.set_num_threads(1)  # matrices of this size only lose by more

CONFIG = Config(vocab=12, hidden=16, layers=2, heads=4, kv_heads=2, head_dim=4, ffn=24, context=96)
LAWS = {
    "greedy": Law(),
    "plain": Law(1.0),
    "top-k": Law(0.7, top_k=5),
    "top-p": Law(1.3, top_p=0.8),
}
Make = Callable[[Sequences, Law], Method]


def transformer(seed: int = 0, config: Config = CONFIG, spread: float = 3.0) -> Transformer:
    """A random float64 model whose logits have a standard deviation of about `spread`."""
    random, model = torch.Generator().manual_seed(seed), Transformer(config).double()
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
        parameter.data = noise * parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 1 + noise / 10
    model.embedding.data *= config.hidden**0.5
    model.head.data *= spread
    return model.prepare()


def perturbed(model: Transformer, amount: float, seed: int = 0) -> Transformer:
    """A copy whose every weight is off by about `amount` of its matrix's standard deviation: a draft model."""
    random, copy = torch.Generator().manual_seed(seed), Transformer(model.config).double()
    for ours, theirs in zip(copy.parameters(), model.parameters(), strict=True):
        noise = torch.randn(theirs.shape, generator=random, dtype=torch.float64)
        ours.data = theirs + amount * theirs.std() * noise
    return copy.prepare()


def bigram(table: Tensor) -> Transformer:
    """A model whose next-token logits are `table[token]` [V, V] float64, whatever came before."""
    vocab = len(table)
    config = Config(vocab, hidden=vocab, layers=1, heads=1, kv_heads=1, head_dim=2, ffn=2, context=96, norm_eps=0.0)
    model = transformer(config=config)
    for name, parameter in model.blocks.named_parameters():
        if name.endswith((".out", ".down")):
            parameter.data.zero_()
    model.norm.data.fill_(1.0)
    model.embedding.data = torch.eye(vocab, dtype=torch.float64)
    model.head.data = table.T.double() / vocab**0.5  # the norm makes a one-hot vector sqrt(vocab) long
    return model


class Exact(Law):
    """A law whose masses are the given numbers of 1/32: exact arithmetic from end to end."""

    def __call__(self, logits: Tensor) -> Choices:
        mass = logits.long() << (MASS_BITS - 5)
        return Choices(torch.arange(mass.shape[-1]).expand_as(mass), mass)


exact = Exact()


def path(parents: list[int], row: int) -> list[int]:
    """The rows from the start of a row's tree to the row, by walking up."""
    found = [row]
    while parents[found[0]] != found[0]:
        found.insert(0, parents[found[0]])
    return found


@dataclass(frozen=True)
class Group:
    """Prompts that share a batch."""

    prompts: tuple[Prompt, ...]
    end_ids: frozenset[int] = frozenset()

    def alone(self) -> list["Group"]:
        """The same prompts in batches of one."""
        return [Group((prompt,), self.end_ids) for prompt in self.prompts]


@dataclass(frozen=True)
class Text:
    """A decoded prompt after clipping, with the counts of the steps that gave it."""

    tokens: list[int]
    accepted: list[int]
    drafted: list[int]

    @property
    def steps(self) -> int:
        """Steps that contributed."""
        return len(self.accepted)

    @property
    def tells(self) -> bool:
        """Whether drafts were both accepted and refused."""
        return any(self.accepted) and any(a < d for a, d in zip(self.accepted, self.drafted, strict=True))


def groups(seed: int, count: int, batch: int, vocab: int = CONFIG.vocab) -> list[Group]:
    """Random prompts of unequal lengths, one of one token in every ragged batch; every fourth group has end ids."""
    random = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        lengths = torch.randint(1, 13, (batch,), generator=random).tolist()
        if batch > 1:
            lengths[number % batch] = 1
        ids = [torch.randint(vocab, (length,), generator=random).tolist() for length in lengths]
        keys = [NoiseKey(seed, number * batch + i) for i in range(batch)]
        ends = frozenset({vocab - 1, vocab - 2} if number % 4 == 0 else ())
        made.append(Group(tuple(map(Prompt, ids, keys)), ends))
    return made


def decode(make: Make, target: Transformer, law: Law, work: Iterable[Group], limit: int = 24) -> list[Text]:
    """Run a method over groups of equal batch size; the texts in order."""
    texts, decoder = [], None
    for group in work:
        decoder = decoder or decoder_of(make, target, law, len(group.prompts))
        raw = decoder.decode(list(group.prompts), limit, group.end_ids)
        texts += clipped(raw, limit, group.end_ids)
    return texts


def decoder_of(make: Make, target: Transformer, law: Law, batch: int, context: int = 64) -> Decoder:
    """A decoder with sequences of its own."""
    sequences = Sequences(target, batch, context, widest=24)
    return Decoder(make(sequences, law), sequences)


def clipped(raw: Raw, limit: int, end_ids: frozenset[int]) -> list[Text]:
    """The final texts of a batch."""
    texts = []
    for i, tokens in enumerate(raw.tokens):
        accepted, drafted = [step[i] for step in raw.accepted], [step[i] for step in raw.drafted]
        final = clip(tokens, accepted, limit, end_ids)
        steps = len(final.kept)
        texts.append(Text(final.tokens, accepted[:steps], drafted[:steps]))
    return texts


@dataclass(frozen=True)
class Trained:
    """Settings, and what `load` would have given for a target."""

    settings: Any
    drafter: Callable[[Transformer], Any]


def random_heads(model: Transformer, heads: int = 3, ranks: int = 4) -> Heads:
    """Medusa heads that guess at random, and so are right now and then."""
    random, made = torch.Generator().manual_seed(0), Heads(model.config.hidden, heads, ranks).double()
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
    return made.requires_grad_(False)


def random_student(model: Transformer, kind: str = "o", slots: int = 8, informed: bool = True,
                   sequential: bool = False, blurred: bool = False) -> Student:
    """A student of PTP that has learned nothing, with confidences that differ from place to place."""
    torch.manual_seed(0)
    made = Student(Design(kind, slots, 3, informed, sequential=sequential, sequential_width=8, blurred=blurred),
                   model.config)
    made.adapter.double()
    for parameter in made.adapter.parameters():
        parameter.data = torch.randn_like(parameter) / 1.5
    if made.readout is not None:
        made.readout.double().widen.data.normal_(std=0.3)
    for confidence in made.confidence.values():
        confidence.slope.uniform_(0.2, 1)
        confidence.intercept.uniform_(-1, 1)
    return made.requires_grad_(False)


TRAINED = {
    "draft_model": Trained(DraftSettings(draft="perturbed", k=3), partial(perturbed, amount=0.15)),
    "medusa": Trained(MedusaSettings(rows=12), random_heads),
    "ptp": Trained(PTPSettings(k=5, slots=18), random_student),
    "independent": Trained(PTPSettings(k=5, slots=18), partial(random_student, informed=False)),
}
SETTINGS = {"prompt_lookup": LookupSettings(k=5, ngram=2)}  # where the defaults are too large for tiny texts


def registered(name: str, target: Transformer) -> Make:
    """How to make a method of the registry on a tiny target."""
    method = METHODS[name]
    loads = method.load.__func__ is not Method.load.__func__  # type: ignore[attr-defined]
    assert name in TRAINED or not loads, f"{name} loads a trained part: give it a line in tests/tiny.py, TRAINED"
    if name in TRAINED:
        return partial(method, settings=TRAINED[name].settings, drafter=TRAINED[name].drafter(target))
    return partial(method, settings=SETTINGS.get(name, method.Settings()))


def matching() -> list[str]:
    """Names of the registered methods that are verified by `match`."""
    target = transformer()
    sequences = Sequences(target, 1, context=32, widest=24)
    return [name for name in METHODS if registered(name, target)(sequences, Law()).verifier == "match"]
