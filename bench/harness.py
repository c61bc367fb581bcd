"""A method of the loop as lm-eval sees a model: text in, the timed loop, text out.

lm-eval (Gao et al., "The Language Model Evaluation Harness") knows texts only. What is scored through this adapter is
what the very code gives whose speed is published.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from bench.clip import Clipped, clip
from bench.errors import BenchError
from bench.loop import Decoder, Raw
from bench.measure import WARM_UP_TOKENS, Team
from bench.noise import NoiseKey
from bench.sequences import Prompt, Sequences

CHAT = "\x02conversation "  # in front of one in JSON: lm-eval hands it back, and no other text begins like this


@dataclass(frozen=True)
class Wish:
    """One text that lm-eval asks for."""

    number: int  # among all of the call: the same for every method, so that they share its noise
    ids: list[int]
    limit: int  # most new tokens
    until: list[str]  # the text ends before the first of these


@dataclass
class Made:
    """What a method has decoded so far."""

    texts: list[list[int]] = field(default_factory=list)  # new ids, clipped
    steps: int = 0  # that contributed, summed over texts
    ms: float = 0.0  # decode time: a batch's counts once

    @property
    def tokens(self) -> int:
        """New ids of all texts."""
        return sum(map(len, self.texts))


class HarnessModel(TemplateLM):
    """One method of a team. The run's law holds, whatever a task says about sampling.

    The loop knows limits and end-of-text ids; a stop string is cut out of the text that it gave.
    """

    def __init__(self, team: Team, label: str, max_new_tokens: int | None = None):
        """`max_new_tokens`: in place of the tasks' own."""
        super().__init__()
        self.team, self.label, self.max_new_tokens = team, label, max_new_tokens
        self.target, self.text, self.made = team.target, team.target.tokenizer, Made()
        self.max_length = team.target.config.context

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's caches of requests."""
        return f"{self.target.name} {self.target.checksum[:12]}".replace("/", "_")

    @property
    def eot_token_id(self) -> int:
        """The smallest end-of-text id. BenchError for a model without one."""
        if not self.target.end_ids:
            raise BenchError(f"{self.target.name} has no end-of-text id to begin a text with: choose other items")
        return min(self.target.end_ids)

    @property
    def prefix_token_id(self) -> int:
        """What a text without context continues: the begin-of-text id if the model wants one."""
        begin = self.text.encode("")
        return begin[0] if begin else self.eot_token_id

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation, to be encoded by `tok_encode` as a run encodes it.

        Without `add_generation_prompt` the last message is the start of the answer.
        """
        answer = "" if add_generation_prompt else chat_history[-1]["content"]
        history = chat_history if add_generation_prompt else chat_history[:-1]
        return CHAT + json.dumps(history) + answer

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, or of a conversation and what follows it; `add_special_tokens=False`: no begin-of-text id."""
        if not string.startswith(CHAT):
            return self.plain(string) if add_special_tokens is False else self.text.encode(string)
        messages, end = json.JSONDecoder().raw_decode(string, len(CHAT))
        return self.text.chat(messages) + self.plain(string[end:])

    def plain(self, text: str) -> list[int]:
        """Ids of a text that continues another."""
        return self.text.encode(text)[len(self.text.encode("")) :]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Decode `(context, {"until": .., "max_gen_toks": ..})` in batches of requests with equal limits, in order."""
        wishes = [self.wish(number, *request.args) for number, request in enumerate(requests)]
        answers = [""] * len(wishes)
        for limit, alike in groupby(sorted(wishes, key=lambda wish: wish.limit), key=lambda wish: wish.limit):
            same = list(alike)
            for wish, tokens in zip(same, self.decode(same, limit), strict=True):
                answers[wish.number] = postprocess_generated_text(self.text.decode(tokens), wish.until, None)
        for answer, request in zip(answers, requests, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return answers

    def wish(self, number: int, context: str, options: dict[str, Any]) -> Wish:
        """A request in ids. BenchError if it does not fit into the model's context."""
        asked = normalize_gen_kwargs(options)
        limit, ids = self.max_new_tokens or asked["max_gen_toks"], self.tok_encode(context)
        if len(ids) + limit > self.max_length:
            raise BenchError(f"request {number} needs {len(ids)} + {limit} positions, the model has {self.max_length}: "
                             "lower --max-new-tokens or choose other items")
        return Wish(number, ids, limit, asked["until"])

    def decode(self, wishes: Sequence[Wish], limit: int) -> Iterator[list[int]]:
        """Batch by batch through the loop; new ids in order."""
        size, seed = self.team.settings.batch, self.team.settings.seed
        prompts = [Prompt(wish.ids, NoiseKey(seed, wish.number)) for wish in wishes]
        batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        context = max(len(prompt.ids) for prompt in prompts) + limit
        decoders = {len(batch): self.decoder(batch, context) for batch in batches}
        for batch in batches:
            raw = decoders[len(batch)].decode(batch, limit, self.team.end_ids)
            for text in self.count(raw, limit):
                yield text.tokens

    def decoder(self, batch: list[Prompt], context: int) -> Decoder:
        """The method, warmed up for batches of this size."""
        sequences = Sequences(self.target.model, len(batch), context, self.team.widest)
        decoder = Decoder(self.team.build(self.label, sequences), sequences)
        decoder.decode(batch, min(WARM_UP_TOKENS, context - max(len(prompt.ids) for prompt in batch)))
        return decoder

    def count(self, raw: Raw, limit: int) -> list[Clipped]:
        """The texts of a batch, noted with their steps and time."""
        found = [clip(tokens, [counts[row] for counts in raw.accepted], limit, self.team.end_ids)
                 for row, tokens in enumerate(raw.tokens)]
        last = max(len(text.kept) for text in found)
        self.made.texts += [text.tokens for text in found]
        self.made.steps += sum(len(text.kept) for text in found)
        self.made.ms += sum(sum(times[:last]) for times in [raw.gaps, *raw.phases.values()])
        return found

    @torch.inference_mode()
    def _loglikelihood_tokens(self, requests: list[tuple[Any, list[int], list[int]]],
                              **_: Any) -> list[tuple[float, bool]]:
        """Log-probability of each continuation under the target, and whether greedy decoding would give it."""
        return [self.score(context, continuation) for _, context, continuation in requests]

    def score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """One forward over both, of the context as much as there is room for."""
        ids = torch.tensor([[*context, *continuation][-self.max_length - 1 :]], device=self.target.model.norm.device)
        logits = self.target.model.logits(ids[:, :-1])[0, -len(continuation) :]
        said = ids[0, -len(continuation) :]
        chosen = logits.log_softmax(-1).gather(1, said[:, None])
        return float(chosen.sum()), bool((logits.argmax(-1) == said).all())

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in windows of the model's context."""
        return [sum(self.score(*window)[0] for window in self.windows(request.args[0])) for request in requests]

    def windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        """Context and continuation, every token once in a continuation."""
        ids = self.tok_encode(text)
        return map(make_disjoint_window, get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1))
