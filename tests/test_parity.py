"""The default model, float32: the greedy ids of `autoregressive` are those of transformers, question by question."""

import pytest
import torch

from baselines.autoregressive import Autoregressive
from baselines.references import twin
from bench import prompts, zoo
from bench.loop import Decoder
from bench.noise import NoiseKey
from bench.plan import Prompter
from bench.sampling import Law
from bench.sequences import Prompt, Sequences

QUESTIONS, TOKENS = 6, 24  # one question per task; 20 questions of 64 tokens take minutes on two cores


@pytest.mark.slow
def test_greedy_ids_of_the_default_model():
    """transformers reads every text once: if each token is its first choice there, it would have written the same."""
    target = zoo.load("smollm2-135m")
    prompter = Prompter(target.tokenizer, TOKENS)
    batch = [Prompt(prompter.prompt(question, 0, {}), NoiseKey(0, question.question_id))
             for question in prompts.load(None, QUESTIONS)]
    sequences = Sequences(target.model, QUESTIONS, max(len(p.ids) for p in batch) + TOKENS, widest=1)
    texts = Decoder(Autoregressive(sequences, Law()), sequences).decode(batch, TOKENS).tokens
    other = twin(target.model)
    for prompt, text in zip(batch, texts, strict=True):
        with torch.inference_mode():
            logits = other(torch.tensor([[*prompt.ids, *text]]), logits_to_keep=TOKENS + 1).logits
        assert logits[0, :-1].argmax(-1).tolist() == text[:TOKENS]
