"""The shape of a decoder-only transformer: everything that the forward needs to know besides its weights."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RopeScaling:
    """Frequency scaling of Llama 3.x (`rope_type: llama3` in a Hugging Face config).

    Wavelengths above `original_context / low_freq_factor` are stretched by `factor`, those below
    `original_context / high_freq_factor` are kept, the ones between are blended. `kind` "linear" stretches all.
    """

    kind: str  # "llama3" or "linear"
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True)
class Config:
    """Shape of a Llama, Vicuna, SmolLM2, Mistral, Qwen2/2.5 or Qwen3 model (all sizes in elements)."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int  # longest sequence the model was made for; a sliding window shorter than it counts instead
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3: RMS norm of every query and key head before the rotation
    tied: bool = False  # the head is the embedding matrix
