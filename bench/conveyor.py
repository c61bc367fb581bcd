"""More sequences than rows: a row whose sequence is done takes the next one, so that no row waits for the longest."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.cache import Cache
from bench.clip import clip
from bench.forward import prefill
from bench.loop import Decoder
from bench.sequences import Prompt

STRIDE = 8  # steps between two looks at what is done
FREE = 8  # one row in so many must be free before any is filled: a prefill costs as much for one row as for many


@dataclass(frozen=True)
class Job:
    """A prompt, and what happens to its continuation."""

    prompt: Prompt
    limit: int  # new tokens
    then: Callable[[list[int]], None]


class Conveyor:
    """Drives a decoder's loop, a few steps at a time."""

    def __init__(self, decoder: Decoder, end_ids: frozenset[int]):
        self.decoder, self.sequences, self.end_ids = decoder, decoder.sequences, end_ids

    @torch.inference_mode()
    def drain(self, waiting: deque[Job]) -> None:
        """Decode until nothing waits and nothing runs. A job's `then` may let more jobs wait."""
        rows: list[Job | None] = [None] * self.sequences.batch
        self.sequences.end_at(self.end_ids)
        self.sequences.done.fill_(True)
        while waiting or any(rows):
            free = [row for row, job in enumerate(rows) if job is None]
            if waiting and FREE * len(free) >= len(rows):
                for row in free[: len(waiting)]:
                    rows[row] = waiting.popleft()
                self.place({row: job for row in free if (job := rows[row])})
            self.sequences.log.reset()
            self.decoder.run(STRIDE)
            self.harvest(rows)

    def place(self, jobs: dict[int, Job]) -> None:
        """Prompts into rows, and all but their last tokens through the target into the cache."""
        sequences, prompts = self.sequences, [job.prompt for job in jobs.values()]
        sequences.put(list(jobs), prompts, [job.limit for job in jobs.values()], streams=("target",))
        rows = torch.tensor(list(jobs), device=sequences.device)
        length = max(len(prompt.ids) for prompt in prompts) - 1
        target = sequences.target
        part = Cache(target.config, len(jobs), length, target.norm)
        prefill(target, part, sequences.tokens[rows, :length])
        sequences.cache.keys[:, rows, :, :length] = part.keys
        sequences.cache.values[:, rows, :, :length] = part.values
        self.decoder.method.start()

    def harvest(self, rows: list[Job | None]) -> None:
        """Hand on what is finished, and free its rows."""
        done, lengths = self.sequences.done.tolist(), self.sequences.lengths.tolist()
        ready = [(row, job) for row, job in enumerate(rows) if job and done[row]]
        tokens = self.sequences.tokens[[row for row, _ in ready]].tolist()
        for (row, job), ids in zip(ready, tokens, strict=True):
            rows[row] = None
            job.then(clip(ids[len(job.prompt.ids) : lengths[row]], [], job.limit, self.end_ids).tokens)
