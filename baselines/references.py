"""Outside references: Hugging Face transformers' own `generate`, on the target's very weights.

Never the denominator of a speedup: they show how much of one a framework can make up. `hf_eager` is what most papers
call the baseline; `hf_static` is the same with its static cache and compiled forward (CUDA only).
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.errors import BenchError
from bench.loop import Raw
from bench.model import Transformer, hugging_face_names
from bench.sampling import Law
from bench.sequences import Prompt
from bench.timing import PHASES, clock_for, synchronize
from bench.zoo.checkpoint import tensor_shapes
from bench.zoo.convert import to_huggingface

CACHES = {"hf_eager": None, "hf_static": "static"}  # name -> cache implementation of transformers


class Reference:
    """A `Decoder` of another make: same call, same `Raw`. One sequence at a time.

    Sampled texts are drawn with torch's generator, seeded by the sequence's noise key: they cannot equal ours.
    """

    def __init__(self, name: str, target: Transformer, law: Law, context: int):
        """`context`: longest prompt plus answer. BenchError for `hf_static` without CUDA."""
        self.device = target.norm.device
        if name == "hf_static" and self.device.type != "cuda":
            raise BenchError("hf_static needs a CUDA device: leave it out, or take hf_eager")
        self.model, self.law, self.context, self.cache = twin(target), law, context, CACHES[name]
        self.clock = clock_for(self.device)

    def decode(self, prompts: list[Prompt], max_new_tokens: int, end_ids: frozenset[int] = frozenset()) -> Raw:
        """Continue one prompt until `max_new_tokens` new ids or an end id. BenchError for several prompts."""
        if len(prompts) != 1:
            raise BenchError("transformers' generate is measured one sequence at a time: use --batch 1")
        ids = torch.tensor([prompts[0].ids], device=self.device)
        torch.manual_seed(int(prompts[0].noise.numbers("draft", 1)[0]))
        first = FirstToken(self.clock.mark, self.device)
        synchronize(self.device)
        self.clock.reset()
        self.clock.mark()
        new = self.model.generate(ids, attention_mask=torch.ones_like(ids), stopping_criteria=[first],
                                  generation_config=self.settings(max_new_tokens, end_ids))
        self.clock.mark()
        synchronize(self.device)
        wall_ms = (time.perf_counter() - first.time) * 1000
        first_ms, rest_ms = self.clock.intervals()
        return spread(new[0, ids.shape[1] :].tolist(), first_ms, rest_ms, wall_ms)

    def settings(self, max_new_tokens: int, end_ids: frozenset[int]) -> Any:
        """The run's law and limits in transformers' words."""
        from transformers import GenerationConfig

        law: dict[str, Any] = {"do_sample": False}
        if self.law.temperature:
            law = {"do_sample": True, "temperature": self.law.temperature, "top_k": self.law.top_k,
                   "top_p": self.law.top_p}
        if self.cache:
            law |= {"cache_implementation": self.cache, "max_cache_len": self.context}
        return GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=sorted(end_ids) or None, pad_token_id=0,
                                **law)


class FirstToken:
    """A stopping criterion that stops nothing; it notes when the first token has been drawn."""

    def __init__(self, mark: Callable[[], None], device: torch.device):
        self.mark, self.device, self.time = mark, device, 0.0

    def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """[B, T] -> [B] bool, all False."""
        if not self.time:
            self.mark()
            synchronize(self.device)
            self.time = time.perf_counter()
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


def spread(tokens: list[int], first_ms: float, rest_ms: float, wall_ms: float) -> Raw:
    """A text's times as those of equal steps of one token.

    `generate` draws the first token (`first_ms`) from its prefill, and the others (`rest_ms`, on the host `wall_ms`)
    from one forward each. The first is given as much time as each of the others took, and the prefill what is left
    of it: as if the prompt's last token had been a step, as it is in the loop. A lone token keeps all of its time.
    """
    n = len(tokens)
    step, scale = (rest_ms / (n - 1), n / (n - 1)) if n > 1 else (first_ms, 0.0)
    phases = {name: [step if name == "forward" else 0.0] * n for name in PHASES}
    return Raw(tokens=[tokens], accepted=[[0]] * n, drafted=[[0]] * n, evidence=torch.zeros(n, 3, 1), rows=[1] * n,
               phases=phases, gaps=[0.0] * n, prefill_ms=max(first_ms - step, 0.0),
               wall_ms=wall_ms * scale if n > 1 else first_ms)


def twin(model: Transformer) -> Any:
    """The same model as transformers builds it, its weights being views of ours."""
    from transformers import AutoConfig, AutoModelForCausalLM

    raw = to_huggingface(model.config) | {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = AutoConfig.for_model(raw.pop("model_type"), **raw)
    with torch.device("meta"):
        other = AutoModelForCausalLM.from_config(config, dtype=model.norm.dtype)
    other.load_state_dict(views(model), assign=True)
    rotary = other.model.rotary_emb  # its table is no weight, so that it is still without data
    with model.norm.device:
        other.model.rotary_emb = type(rotary)(config)
    other.tie_weights()
    return other.requires_grad_(False).eval()


def views(model: Transformer) -> dict[str, Tensor]:
    """The weights under their Hugging Face names, without a copy."""
    shapes, parameters = tensor_shapes(model.config), dict(model.named_parameters())
    found: dict[str, Tensor] = {}
    for ours, theirs in hugging_face_names(model.config):
        parts = parameters[ours].data.split([shapes[name][0] for name in theirs])
        found |= dict(zip(theirs, parts, strict=True))
    return {"lm_head.weight": found["model.embed_tokens.weight"]} | found
