"""The one trainer of all drafters: batches in, a trained module out, and a checkpoint whenever it may have to stop."""

import math
import platform
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from torch import Tensor, nn

from bench.errors import BenchError
from bench.meter import Meter
from bench.packing import Batch, Reader, Supply
from bench.programs import plainly
from bench.sampling import Law
from bench.timing import synchronize

CHECKPOINT = "checkpoint.pt"
WARM_UP = 0.03  # share of the whole training in which the rate rises
FINAL = 0.05  # of the full rate is left at the end
PULSE = 10  # steps between looks at the clock
SAVE_EVERY, MEASURE_EVERY = 120.0, 30.0  # seconds
GLANCE, EXAM = 2, 64  # held-out batches looked at while training goes on, and in the end
GRADIENT_NORM = 1.0
LIKENESS = 0.05  # between compiled and plain loss, whose noise differs in its last digits


class Trainable(Protocol):
    """The trained part of a method, as the trainer sees it."""

    law: Law  # of the texts that are not greedy
    module: nn.Module  # float32; what is optimised is what requires a gradient
    options: dict[str, Any]  # its shape: what it takes to build it again
    rate: float  # learning rate that suits it

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss of a batch, a scalar with a gradient. Nothing in it waits for the device."""

    def acceptance(self, batch: Batch) -> Tensor:
        """What `tally` makes of the places that it looks at, without a gradient."""

    def measure(self, batches: list[Batch]) -> None:
        """Whatever the module keeps that is measured on held-out text, not trained; before every `acceptance`."""


def tally(accepted: Tensor, silent: Tensor) -> Tensor:
    """Accepted drafts [S] at places that follow the law, or are `silent` [S] bool: at temperature 0.

    -> (tokens of steps there, number of places) of both, [2, 2] float64.
    """
    tokens, kinds = 1.0 + accepted.double(), torch.stack([~silent, silent])
    return torch.stack([torch.where(kinds, tokens, 0).sum(1), kinds.double().sum(1)], 1)


Acceptance = dict[str, float]  # SAMPLED, GREEDY -> tokens per step; those that there are held-out texts for
SAMPLED, GREEDY = "sampled", "greedy"


@dataclass(frozen=True)
class Plan:
    """How long and how fast."""

    seconds: float
    steps: int | None = None  # if given, it is what counts
    rate: float | None = None
    seed: int = 0

    def share(self, step: int, seconds: float) -> float:
        """How much of the training is over, 0 to 1."""
        return min(1.0, step / self.steps if self.steps else seconds / self.seconds)


def pace(share: float) -> float:
    """The learning rate at a share of the training, as a share of the full one: a line up, half a cosine down."""
    if share < WARM_UP:
        return max(share / WARM_UP, 0.01)
    return FINAL + (1 - FINAL) * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))) / 2


class Trainer:
    """AdamW over a Trainable."""

    def __init__(self, pupil: Trainable, seen: Reader, held_out: Reader, plan: Plan):
        self.pupil, self.plan = pupil, plan
        weights = [p for p in pupil.module.parameters() if p.requires_grad]
        self.weights, self.device = weights, weights[0].device
        self.seen = Supply(seen, self.device)
        self.held_out = [batch.to(self.device) for batch in islice(held_out.whole(seen.rows), EXAM)]
        self.rate = plan.rate or pupil.rate
        self.optimizer = torch.optim.AdamW(weights, self.rate, betas=(0.9, 0.98), weight_decay=0.01,
                                           fused=self.device.type == "cuda")
        self.step, self.seconds = 0, 0.0
        self.losses: list[Tensor] = []
        self.saved = 0.0
        self.curve: list[tuple[int, float, Acceptance]] = []  # on a little held-out text after steps, seconds

    def run(self, directory: Path, facts: dict[str, Any], resume: bool, out: Console) -> None:
        """Train to the end of the plan. `facts` must be the same in all sessions. Saves when it is stopped, too."""
        if resume and (before := self.restore(directory, facts)) != self.machine():
            out.print(f"the training was begun on {before}: it goes on here, but not bit for bit", soft_wrap=True)
        self.saved = self.seconds
        note = ""
        with Meter(out) as meter:
            try:
                meter.show(self.plan.share(self.step, self.seconds), "making ready")
                self.rehearse()
                while (share := self.plan.share(self.step, self.seconds)) < 1:
                    meter.show(share, note)
                    self.train(self.pulse())
                    note = self.note()
                    if self.seconds - self.saved >= SAVE_EVERY:
                        self.save(directory, facts)
            except KeyboardInterrupt:
                self.save(directory, facts)
                raise
            self.save(directory, facts)
            meter.show(1.0, note)

    def rehearse(self) -> None:
        """A step and a measurement without consequences: whatever has to be compiled is, before the clock starts.

        BenchError when the loss is another one without the compiler.
        """
        batch = self.seen.at(self.step)
        torch.manual_seed(0)
        loss = self.pupil.loss(batch)
        loss.backward()
        self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        with plainly(), torch.no_grad():
            expected = self.pupil.loss(batch)
        if not torch.isclose(loss, expected, LIKENESS, LIKENESS, equal_nan=True):  # for those see `note`
            raise BenchError(f"the compiled loss is {loss:.3f}, the plain one {expected:.3f}: this version of torch "
                             f"({torch.__version__}) compiles it wrong; use another")
        self.accepted(GLANCE)
        synchronize(self.device)

    def pulse(self) -> int:
        """Steps to the next look at the clock."""
        return min(PULSE, self.plan.steps - self.step) if self.plan.steps else PULSE

    def train(self, steps: int) -> None:
        """Some steps, timed together: the queue of a GPU is emptied only once."""
        begin, start = time.perf_counter(), self.seconds
        self.losses = []
        for _ in range(steps):
            torch.manual_seed((self.plan.seed << 32) + self.step)  # so that a resumed training is the same
            share = self.plan.share(self.step, self.seconds)
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * pace(share)
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.pupil.loss(self.seen.at(self.step))
            loss.backward()
            nn.utils.clip_grad_norm_(self.weights, GRADIENT_NORM)
            self.optimizer.step()
            self.losses.append(loss.detach())
            self.step += 1
            self.seconds = start + time.perf_counter() - begin
        synchronize(self.device)
        self.seconds = start + time.perf_counter() - begin

    def note(self) -> str:
        """What the bar says: the loss, and now and then the held-out acceptance."""
        loss = torch.stack(self.losses).mean().item()
        if not math.isfinite(loss):
            raise BenchError(f"the loss is {loss} after {self.step} steps: lower --rate (now {self.rate:g})")
        if not self.curve or self.seconds - self.curve[-1][1] >= MEASURE_EVERY:
            self.curve.append((self.step, round(self.seconds, 1), self.accepted(GLANCE)))
        step, _, accepted = self.curve[-1]
        return f"{self.step / self.seconds:.1f} steps/s, loss {loss:.3f}, {shown(accepted)} at step {step}"

    @torch.no_grad()
    def accepted(self, batches: int | None = None) -> Acceptance:
        """Tokens per step on held-out text; on the first `batches` of it, if given. The noise is always the same.

        What a drafter keeps of measurements (a choice tree, say) is measured anew, on the same text.
        """
        torch.manual_seed(0)  # every step sets its own
        self.pupil.measure(self.held_out[:batches])
        total = torch.stack([self.pupil.acceptance(batch) for batch in self.held_out[:batches]]).sum(0)
        found = {name: tokens / places for name, (tokens, places) in
                 zip((SAMPLED, GREEDY), total.tolist(), strict=True) if places}
        if (SAMPLED if self.pupil.law.temperature else GREEDY) not in found:
            raise BenchError("the held-out texts have no place to measure at (too few, too short, or not of the law "
                             "that they claim): write others with  python -m bench data")
        return found

    def save(self, directory: Path, facts: dict[str, Any]) -> None:
        """Write the checkpoint in one go."""
        fresh = directory / f".{CHECKPOINT}"
        state = {"facts": facts, "machine": self.machine(), "step": self.step, "seconds": self.seconds,
                 "curve": self.curve, "module": self.pupil.module.state_dict(),
                 "optimizer": self.optimizer.state_dict()}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            torch.save(state, fresh)
            fresh.replace(directory / CHECKPOINT)
        except (OSError, RuntimeError) as error:
            raise BenchError(f"cannot write to {directory} ({error}): choose another --out") from error
        self.saved = self.seconds

    def machine(self) -> str:
        """What a training has to stay on to be the same to the last bit."""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.processor()
        return f"{device or self.device.type}, torch {torch.__version__}"

    def restore(self, directory: Path, facts: dict[str, Any]) -> str:
        """Go back to a checkpoint -> the machine that wrote it. BenchError: there is none, or of another training."""
        try:
            state = torch.load(directory / CHECKPOINT, map_location=self.device, weights_only=True)
        except Exception as error:  # a torn file makes the unpickler raise anything
            raise BenchError(f"{directory} holds no training to resume ({type(error).__name__})") from error
        for name, value in facts.items():
            if state["facts"].get(name) != value:
                raise BenchError(f"the training to resume had {name} {state['facts'].get(name)}, not {value}: "
                                 "repeat its flags, or start anew with --out")
        self.pupil.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.curve = state["step"], state["seconds"], state["curve"]
        return state["machine"]  # type: ignore[no-any-return]


def shown(accepted: Acceptance) -> str:
    """For people."""
    return " and ".join(f"{value:.3f} ({name})" for name, value in accepted.items()) + " tokens per step"
