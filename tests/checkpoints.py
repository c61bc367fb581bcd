"""Random checkpoints of every supported architecture, written by transformers, for the tests that read them back."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bench.zoo.chat import TextTokenizer

TEMPLATE = ("{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}")
COMMON: dict[str, Any] = {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                          "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 256,
                          "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32, "rope_theta": 500000.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied, as many keys as heads": ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama 3": ("llama", {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-5}),
    "llama linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    "mistral": ("mistral", {"head_dim": 24, "sliding_window": None}),
    "qwen2": ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32}),
}


def make(case: str) -> torch.nn.Module:
    """A transformers model, float32, random but lively: logits with a standard deviation of about two."""
    kind, options = CASES[case]
    config = transformers.AutoConfig.for_model(kind, **COMMON | options)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, p in model.named_parameters():
        if p.dim() == 1:
            torch.nn.init.normal_(p, 0.0 if name.endswith("bias") else 1.0, 0.2)
        elif p is model.lm_head.weight:
            torch.nn.init.normal_(p, 0.0, 2.0 * p.shape[1] ** -0.5)
        else:
            torch.nn.init.normal_(p, 0.0, 1.0 if "embed" in name else p.shape[1] ** -0.5)
    return model


def save(model: torch.nn.Module, folder: Path, **options: Any) -> Path:
    """A complete Hugging Face directory."""
    model.save_pretrained(folder, **options)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *letters, "Ġa", "he"])}
    backend = Tokenizer(models.BPE(ids, [("Ġ", "a"), ("h", "e")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    TextTokenizer(backend, TEMPLATE, {"bos_token": "<s>", "eos_token": "</s>"}, [1]).save(folder)
    return folder


def logits_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """What transformers computes: [B, T] -> [B, T, vocab] float32."""
    with torch.no_grad():
        return model(ids).logits
