"""The decoding loop: the only code that calls the target while decoding."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.forward import Forward, Result, forward_for, prefill
from bench.graphs import Phase, nothing, prepared, recorded
from bench.model import Adapter
from bench.sampling import Law
from bench.sequences import SLACK, Prompt, Sequences
from bench.timing import PHASES, Clock, clock_for, synchronize
from bench.tree import Tree
from bench.verify import VERIFIERS, Outcome, Trial


@dataclass(frozen=True)
class NoSettings:
    """For methods without options."""


class Method:
    """What a decoding method adds to the loop. Every function is a fixed-shape device program without a host sync."""

    Settings: type = NoSettings  # dataclass of the options that the command line may set
    verifier = "match"
    rows: tuple[int, ...] = (1,)  # rows of each kind of step; several kinds alternate
    adapter: Adapter | None = None
    taps: tuple[int, ...] = ()  # what `observe` wants to see: layers' outputs, or `layers` for the final norm's

    def __init__(self, sequences: Sequences, law: Law, settings: Any = None, drafter: Any = None):
        self.sequences, self.law, self.settings, self.drafter = sequences, law, settings, drafter

    @classmethod
    def load(cls, settings: Any, target: Any) -> Any:
        """The method's trained part (heads, adapter, draft model) for a zoo target, shared by all its instances."""
        return None

    @classmethod
    def file(cls, settings: Any, target: Any) -> Path | None:
        """The file that `load` reads, if it reads one: a drafter with its card (see `bench.drafters`)."""
        return None

    def start(self) -> None:
        """Get ready for the prompts just filled in; timed with the prefill. Also called before the capture."""

    def propose(self, kind: int) -> Tree:
        """The tree of the next step. `kind` is the index into `rows`."""
        raise NotImplementedError

    def observe(self, seen: "Seen") -> None:
        """Learn from the step. Leave it out when there is nothing to learn."""

    @property
    def extra_bytes(self) -> int:
        """Memory of the method's own weights and caches."""
        return 0


@dataclass
class Seen:
    """A step as `observe` sees it, after the commit."""

    kind: int
    tree: Tree
    result: Result
    outcome: Outcome
    root: Tensor  # [B] int64: where the root was in this step; a sequence that is done does not move


class Step:
    """One kind of step: five phases that hand their results on."""

    def __init__(self, method: Method, forward: Forward, kind: int):
        self.method, self.forward_rows, self.kind = method, forward, kind
        self.sequences, self.verifier = method.sequences, VERIFIERS[method.verifier]

    def propose(self) -> None:
        """Method -> tree."""
        self.root = self.sequences.root
        self.tree = self.method.propose(self.kind)

    def forward(self) -> None:
        """Target(tree) -> logits, taps."""
        self.result = self.forward_rows(self.tree, self.root, self.method.adapter, self.method.taps)

    def verify(self) -> None:
        """Logits, tree, noise -> kept rows."""
        trial = Trial(self.tree, self.result.logits, self.root, self.method.law, self.sequences.noise)
        self.outcome = self.verifier(trial)

    def commit(self) -> None:
        """Cache and tokens."""
        if not self.tree.is_chain:
            self.sequences.cache.commit(self.root, self.outcome.path)
        self.sequences.commit(self.outcome)

    def observe(self) -> None:
        """The method reads what the forward taught it."""
        self.method.observe(Seen(self.kind, self.tree, self.result, self.outcome, self.root))

    def phases(self) -> list[Phase]:
        """In order; `observe` is nothing when the method does not define it."""
        observes = type(self.method).observe is not Method.observe
        return [self.propose, self.forward, self.verify, self.commit, self.observe if observes else nothing]


@dataclass
class Raw:
    """A decoded batch before clipping; times in milliseconds."""

    tokens: list[list[int]]  # new ids of each sequence, unclipped
    accepted: list[list[int]]  # [steps][B]
    drafted: list[list[int]]
    evidence: Tensor  # [steps, 3, B] float64
    rows: list[int]  # [steps]
    phases: dict[str, list[float]]  # [steps] each
    gaps: list[float]  # [steps]: between the step before and this one, 0 for the first
    prefill_ms: float
    wall_ms: float


@dataclass
class Program:
    """One step, ready to run: on CUDA a graph with events inside. It keeps its marks until it runs again."""

    work: Phase
    clock: Clock

    def run(self) -> Clock:
        """Start the step."""
        self.work()
        return self.clock


def marked(phases: list[Phase], clock: Clock) -> None:
    """All phases of a step, with a mark at every border; where there is nothing to do, none is made."""
    clock.reset()
    clock.mark()
    for phase in phases:
        if phase is nothing:
            clock.repeat()
        else:
            phase()
            clock.mark()


def programs(steps: list[Step], device: torch.device) -> list[Program]:
    """The kinds of step in turn, and that several times over: a step's times, and those of the gap before it, are read
    while `SLACK` later steps run."""
    phases = [prepared(step.phases(), device) for step in steps] * (SLACK + 2)
    clocks = [clock_for(device) for _ in phases]
    works: list[Phase] = [partial(marked, own, clock) for own, clock in zip(phases, clocks, strict=True)]
    return [Program(*each) for each in zip(recorded(works, device), clocks, strict=True)]


class Decoder:
    """One method, ready to decode batch after batch: its steps are captured once."""

    def __init__(self, method: Method, sequences: Sequences):
        self.method, self.sequences = method, sequences
        forward = forward_for(sequences.target, sequences.cache, sequences.widest)
        method.start()
        sequences.log.reset()  # steps are run before they are captured, and decoders share a log: it must not fill up
        self.steps = [Step(method, forward, kind) for kind in range(len(method.rows))]
        self.programs = programs(self.steps, sequences.device)
        self.late = SLACK - 1 if sequences.device.type == "cuda" else 0  # steps: so that the queue never runs dry
        self.times: list[list[float]] = []  # per step, of the gap before it and of each phase, in milliseconds

    @property
    def clock(self) -> Clock:
        """One of the clocks, all of which are alike."""
        return self.programs[0].clock

    @torch.inference_mode()
    def decode(self, prompts: list[Prompt], max_new_tokens: int, end_ids: frozenset[int] = frozenset()) -> Raw:
        """Continue the prompts until each has `max_new_tokens` new ids or an end id."""
        sequences, device = self.sequences, self.sequences.device
        sequences.fill(prompts, max_new_tokens, end_ids)
        lengths = [len(p.ids) for p in prompts]
        prefill_ms = timed(partial(self.prefill, max(lengths) - 1), device)
        wall_ms = timed(partial(self.run, max_new_tokens), device)
        return self.collect(lengths, prefill_ms, wall_ms)

    def prefill(self, length: int) -> None:
        """All tokens but the last; then the method's own start."""
        prefill(self.sequences.target, self.sequences.cache, self.sequences.tokens[:, :length])
        self.method.start()

    def run(self, max_new_tokens: int) -> None:
        """The loop. Each step keeps at least one token per sequence that is not done."""
        clocks: list[Clock] = []
        self.times = []
        for step in range(max_new_tokens + SLACK):
            clocks.append(self.programs[step % len(self.programs)].run())
            if step >= SLACK:
                self.times.append(times(clocks, step - SLACK))
            if step >= self.late and self.ended(clocks, step - self.late):
                break
        synchronize(self.sequences.device)  # the flag that ended the loop tells nothing of the last steps' events
        self.times += [times(clocks, step) for step in range(len(self.times), len(clocks))]

    def ended(self, clocks: list[Clock], step: int) -> bool:
        """Whether all sequences were done after a step. Waits until it is over."""
        clocks[step].wait()
        return bool(self.sequences.log.done[step].all())

    def launch(self, steps: int) -> None:
        """Some steps, which a CUDA device is left to run; nobody asks after their times."""
        for step in range(steps):
            self.programs[step % len(self.programs)].run()

    def collect(self, lengths: list[int], prefill_ms: float, wall_ms: float) -> Raw:
        """Bring everything to the host."""
        log, steps = self.sequences.log, len(self.times)
        gaps, *phases = map(list, zip(*self.times, strict=True))
        tokens, ends = self.sequences.tokens.tolist(), self.sequences.lengths.tolist()
        accepted, drafted = log.counts[:steps].transpose(0, 1).tolist()
        rows = [self.method.rows[step % len(self.method.rows)] for step in range(steps)]
        new = [ids[start:end] for ids, start, end in zip(tokens, lengths, ends, strict=True)]
        return Raw(new, accepted, drafted, log.evidence[:steps].cpu(), rows,
                   dict(zip(PHASES, phases, strict=True)), gaps, prefill_ms, wall_ms)


def times(clocks: list[Clock], step: int) -> list[float]:
    """Milliseconds of the gap before a step and of its phases; `clocks`: those of all steps."""
    phases = clocks[step].intervals()  # waits until the step is over
    return [clocks[step].since(clocks[step - 1]) if step else 0.0, *phases]


class Work(Protocol):
    """Something to time."""

    def __call__(self) -> None: ...  # noqa: D102


def timed(work: Work, device: torch.device) -> float:
    """Host milliseconds between two synchronisations around `work`."""
    synchronize(device)
    begin = time.perf_counter()
    work()
    synchronize(device)
    return (time.perf_counter() - begin) * 1000
