"""More sequences than rows: a row whose sequence is done takes the next one, so that no row waits for the longest.

A CUDA device never waits for the host: while it runs a stride, the host reads the prompts that come next into a cache
of their own, and hands on what was finished a stride ago.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from bench.cache import Cache
from bench.clip import clip
from bench.forward import read
from bench.loop import Decoder
from bench.noise import sent
from bench.sequences import Prompt, Sequences

STRIDE = 4  # steps between two looks at what is done
FREE = 16  # one row in so many must be free before any is filled: prompts are read faster together
AHEAD = 4  # jobs that may begin while a stride runs, which the host has no other use for
READ = 1 << 14  # most tokens of prompts, padding included, that are read together


More = Callable[[], bool]  # lets something begin that may bring jobs; False: nothing is left to begin


@dataclass(frozen=True)
class Job:
    """A prompt, and what happens to its continuation."""

    prompt: Prompt
    limit: int  # new tokens
    then: Callable[[list[int]], None]


@dataclass(frozen=True)
class Ready:
    """Jobs whose prompts are read; they wait for rows."""

    jobs: list[Job]
    caches: list[Cache]  # of the first few jobs, of the next few, ...


class Look:
    """What the rows say and which are done, copied to the host while the device goes on."""

    def __init__(self, sequences: Sequences):
        self.sources, on_cuda = (sequences.done, sequences.lengths, sequences.tokens), sequences.done.is_cuda
        self.copies = [torch.empty(source.shape, dtype=source.dtype, pin_memory=on_cuda) for source in self.sources]
        self.copied = torch.cuda.Event() if on_cuda else None

    def take(self) -> None:
        """Copy, once all that was begun is over."""
        for copy, source in zip(self.copies, self.sources, strict=True):
            copy.copy_(source, non_blocking=True)
        if self.copied:
            self.copied.record()

    def done(self) -> list[bool]:
        """Of each row, when the look was taken."""
        if self.copied:
            self.copied.synchronize()
        return self.copies[0].tolist()

    def ids(self, row: int, start: int) -> list[int]:
        """What a row says from `start` on."""
        return self.copies[2][row, start : int(self.copies[1][row])].tolist()


class Conveyor:
    """Drives a decoder's loop, a few steps at a time."""

    def __init__(self, decoder: Decoder, end_ids: frozenset[int]):
        self.decoder, self.sequences, self.end_ids = decoder, decoder.sequences, end_ids
        self.look = Look(self.sequences)
        self.together = -(-self.sequences.batch // FREE)  # most prompts that are read together

    @torch.inference_mode()
    def drain(self, waiting: deque[Job], more: More = lambda: False) -> None:
        """Decode until nothing waits and nothing runs. A job's `then` may let more jobs wait, and so may `more`."""
        rows: list[Job | None] = [None] * self.sequences.batch
        self.sequences.end_at(self.end_ids)
        self.sequences.rest(list(range(len(rows))))
        ready = self.read(waiting, more)
        while ready.jobs or any(rows):
            while ready.jobs and len(free := [row for row, job in enumerate(rows) if job is None]) >= len(ready.jobs):
                self.place(ready, rows, free)
                ready = self.read(waiting, more)
            self.look.take()
            self.sequences.log.reset()
            self.decoder.launch(STRIDE)
            begin(waiting, more, min(len(waiting) + AHEAD, self.together))
            self.harvest(rows)
            ready = ready if ready.jobs else self.read(waiting, more)

    def read(self, waiting: deque[Job], more: More) -> Ready:
        """As many of the jobs that wait as take rows together, and their prompts through the target."""
        begin(waiting, more, self.together)
        jobs = [waiting.popleft() for _ in range(min(len(waiting), self.together))]
        parts = list(alike(jobs))
        caches = [read(self.sequences.target, sent(padded(job.prompt.ids for job in part), self.sequences.device))
                  for part in parts]
        return Ready([job for part in parts for job in part], caches)

    def place(self, ready: Ready, rows: list[Job | None], free: list[int]) -> None:
        """Jobs and what was read of their prompts into rows."""
        jobs, sequences, free = ready.jobs, self.sequences, free[: len(ready.jobs)]
        for row, job in zip(free, jobs, strict=True):
            rows[row] = job
        sequences.put(free, [job.prompt for job in jobs], [job.limit for job in jobs], streams=("target",))
        at = sent(torch.tensor(free), sequences.device).split([cache.batch for cache in ready.caches])
        for part, cache in zip(at, ready.caches, strict=True):
            sequences.cache.keys[:, part, :, : cache.capacity] = cache.keys
            sequences.cache.values[:, part, :, : cache.capacity] = cache.values
        self.decoder.method.start()

    def harvest(self, rows: list[Job | None]) -> None:
        """Hand on what was finished when the look was taken, and free its rows."""
        ended = {row: job for row, done in enumerate(self.look.done()) if done and (job := rows[row])}
        for row, job in ended.items():
            rows[row] = None
            job.then(clip(self.look.ids(row, len(job.prompt.ids)), [], job.limit, self.end_ids).tokens)
        if ended:
            self.sequences.rest(list(ended))


def begin(waiting: deque[Job], more: More, least: int) -> None:
    """Until so many jobs wait, or nothing is left to begin."""
    while len(waiting) < least and more():
        pass


def alike(jobs: list[Job]) -> Iterator[list[Job]]:
    """The jobs by the lengths of their prompts, in parts of at most `READ` tokens."""
    part: list[Job] = []
    for job in sorted(jobs, key=lambda job: len(job.prompt.ids)):
        if part and (len(part) + 1) * len(job.prompt.ids) > READ:
            yield part
            part = []
        part.append(job)
    if part:
        yield part


def padded(prompts: Iterable[list[int]]) -> torch.Tensor:
    """One a row, zeros behind: [prompts, longest] int64."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in prompts], batch_first=True)
