"""Tokenizers rebuilt from bare token lists, as GGUF files and llama2.c keep them.

Into which pieces a text is cut before merging is not in those lists: only a name is (`tokenizer.ggml.pre`). The
patterns are those of the models' own tokenizer.json; a name that is not known here is an error, because a wrong
pattern gives wrong ids without any sign of it.
"""

from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from bench.errors import BenchError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # token types of the GGUF specification
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class Cut:
    """How a byte-level tokenizer cuts a text before it merges bytes."""

    regex: str = ""  # one match, one piece; empty: GPT-2's pattern
    digits: bool = False  # every digit is a piece of its own, cut before the rest
    compose: bool = False  # Unicode NFC first
    whole: bool = False  # a piece that is a token is not merged but taken

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The cut, followed by the map from bytes to printable characters."""
        digits = [pre_tokenizers.Digits(individual_digits=True)] if self.digits else []
        split = [pre_tokenizers.Split(Regex(self.regex), "isolated")] if self.regex else []
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not self.regex)
        return pre_tokenizers.Sequence([*digits, *split, bytes_])


CUTS = {
    "gpt-2": Cut(),
    "smollm": Cut(digits=True),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), Cut(QWEN2, compose=True)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), Cut(LLAMA3, whole=True)),
}


def byte_level(tokens: list[str], kinds: list[int], merges: list[str], pre: str) -> Tokenizer:
    """Byte-level BPE ("gpt2" in GGUF). BenchError for a pre-tokenizer `pre` that is not in CUTS."""
    if pre not in CUTS:
        raise BenchError(f"the GGUF file's pre-tokenizer {pre!r} is not known here (known: {', '.join(CUTS)}); "
                         "use the model's Hugging Face directory")
    cut, ids = CUTS[pre], {token: i for i, token in enumerate(tokens)}
    pairs = [(left, right) for left, right in (merge.split(" ", 1) for merge in merges)]
    backend = Tokenizer(models.BPE(ids, pairs, ignore_merges=cut.whole))
    if cut.compose:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = cut.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    return with_added(backend, tokens, kinds)


def sentencepiece(tokens: list[str], kinds: list[int], scores: list[float], space: bool = True) -> Tokenizer:
    """SentencePiece BPE with byte fallback ("llama" in GGUF); `space` puts one in front of the text.

    SentencePiece joins the neighbours whose union has the best score, so every way to split a piece into two pieces
    is a merge of that piece's rank.
    """
    ids = {token: i for i, token in enumerate(tokens)}
    ranked = sorted((i for i, kind in enumerate(kinds) if kind == NORMAL), key=lambda i: (-scores[i], i))
    pairs = [(token[:cut], token[cut:]) for token in map(tokens.__getitem__, ranked) for cut in range(1, len(token))
             if token[:cut] in ids and token[cut:] in ids]
    unknown = tokens[kinds.index(UNKNOWN)] if UNKNOWN in kinds else None
    backend = Tokenizer(models.BPE(ids, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = [normalizers.Prepend("▁")] if space else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if space else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return with_added(backend, tokens, kinds)


def with_added(backend: Tokenizer, tokens: list[str], kinds: list[int]) -> Tokenizer:
    """Mark control tokens (never printed) and user-defined ones: both are found in a text before anything else."""
    backend.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False)
                        for token, kind in zip(tokens, kinds, strict=True) if kind in (CONTROL, USER_DEFINED)])
    return backend
