"""Hugging Face config.json <-> Config. What our forward cannot compute is refused, never ignored."""

from typing import Any

from bench.config import Config, RopeScaling
from bench.errors import BenchError

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
# What a config.json may leave out: the class defaults of transformers (modeling code of each type).
DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 4096, "num_key_value_heads": 8},
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
}
PLAIN = {"hidden_act": ("silu",), "mlp_bias": (False,), "partial_rotary_factor": (1, None),
         "quantization_config": (None,)}  # the only values that we compute


def from_huggingface(raw: dict[str, Any], where: str) -> Config:
    """The shape in a parsed config.json (`where` names it in errors). BenchError if we could not run it exactly."""
    kind = raw.get("model_type", "")
    require_supported(kind, where)
    raw = DEFAULTS.get(kind, {}) | raw
    refuse_odd(raw, where)
    try:
        heads, hidden = raw["num_attention_heads"], raw["hidden_size"]
        return Config(
            vocab=raw["vocab_size"], hidden=hidden, layers=raw["num_hidden_layers"], heads=heads,
            kv_heads=raw.get("num_key_value_heads") or heads, head_dim=raw.get("head_dim") or hidden // heads,
            ffn=raw["intermediate_size"], context=longest(raw), norm_eps=raw.get("rms_norm_eps", 1e-6),
            rope_theta=float(rope(raw).get("rope_theta", 10000.0)), rope_scaling=rope_scaling(rope(raw), where),
            qkv_bias=kind == "qwen2", qk_norm=kind == "qwen3", tied=raw.get("tie_word_embeddings", False),
        )
    except KeyError as missing:
        raise BenchError(f"{where} lacks {missing}: not a complete {kind} configuration") from missing


def require_supported(architecture: Any, where: str) -> None:
    """Raise BenchError, naming the architectures that there are, for any other."""
    if architecture not in SUPPORTED:
        raise BenchError(f"{where}: unknown architecture {architecture!r}; supported are {', '.join(SUPPORTED)}")


def refuse_odd(raw: dict[str, Any], where: str) -> None:
    """Raise BenchError for the first setting that changes the arithmetic in a way that the forward has not."""
    odd = [key for key, values in PLAIN.items() if raw.get(key, values[0]) not in values]
    odd += ["attention_bias"] if raw.get("attention_bias") and raw["model_type"] != "qwen2" else []
    odd += ["layer_types"] if set(raw.get("layer_types") or ()) - {"full_attention", "sliding_attention"} else []
    odd += ["partial_rotary_factor"] if rope(raw).get("partial_rotary_factor", 1) != 1 else []
    if odd:
        raise BenchError(f"{where}: {odd[0]} = {raw.get(odd[0])!r} is not supported")


def longest(raw: dict[str, Any]) -> int:
    """Tokens up to which full attention is what the model does: its context, or its sliding window if shorter."""
    slides = raw["model_type"] == "mistral" or raw.get("use_sliding_window")
    slides = slides or "sliding_attention" in (raw.get("layer_types") or ())
    window = raw.get("sliding_window") if slides else None
    return min(raw["max_position_embeddings"], window or raw["max_position_embeddings"])


def rope(raw: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings in one style: `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` before."""
    old = {"rope_theta": raw["rope_theta"]} if raw.get("rope_theta") else {}
    return old | (raw.get("rope_scaling") or {}) | (raw.get("rope_parameters") or {})


def rope_scaling(settings: dict[str, Any], where: str) -> RopeScaling | None:
    """The frequency scaling in settings of `rope`. BenchError for kinds other than default, linear and llama3."""
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", float(settings["factor"]))
    if kind != "llama3":
        raise BenchError(f"{where}: rotary scaling {kind!r} is not supported; supported are linear and llama3")
    return RopeScaling("llama3", float(settings["factor"]), float(settings["low_freq_factor"]),
                       float(settings["high_freq_factor"]), settings["original_max_position_embeddings"])


def to_huggingface(config: Config) -> dict[str, Any]:
    """The config.json of a shape: the inverse of `from_huggingface` (a mistral comes back as the llama it is)."""
    kind = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    raw: dict[str, Any] = {
        "model_type": kind, "architectures": [f"{kind.capitalize()}ForCausalLM"], "hidden_act": "silu",
        "vocab_size": config.vocab, "hidden_size": config.hidden, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim, "intermediate_size": config.ffn,
        "max_position_embeddings": config.context, "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta, "tie_word_embeddings": config.tied,
    }
    if (s := config.rope_scaling) is not None:
        raw["rope_scaling"] = {"rope_type": s.kind, "factor": s.factor}
        if s.kind == "llama3":
            raw["rope_scaling"] |= {"low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor,
                                    "original_max_position_embeddings": s.original_context}
    return raw
