"""Tokenizers rebuilt from token lists, against slow and obvious ones."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from bench import zoo
from bench.zoo.vocabulary import CONTROL, CUTS, NORMAL, UNKNOWN, byte_level, sentencepiece


def test_bytes_round_trip():
    tokenizer = zoo.read("tiny").tokenizer
    assert tokenizer.decode(tokenizer.encode("naïve 🙂\n")) == "naïve 🙂\n"
    ids = tokenizer.chat([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}])
    assert ids == [256, 259, *b"hi", 257, 260, *b"yo", 257, 260]


@pytest.mark.parametrize(("pre", "pieces"), [
    ("gpt-2", ["It", "'s", " 2024", ":", "\n\n ", " ok", "!", "\n"]),
    ("smollm", ["It", "'s", " ", "2", "0", "2", "4", ":", "\n\n ", " ok", "!", "\n"]),
    ("qwen2", ["It", "'s", " ", "2", "0", "2", "4", ":\n\n", " ", " ok", "!\n"]),
    ("llama-bpe", ["It", "'s", " ", "202", "4", ":\n\n", " ", " ok", "!\n"]),
])
def test_texts_are_cut_as_each_family_cuts_them(pre, pieces):
    cut = CUTS[pre].pre_tokenizer().pre_tokenize_str("It's 2024:\n\n  ok!\n")
    assert [piece for piece, _ in cut] == [bytes_as_letters(piece) for piece in pieces]


def bytes_as_letters(text):
    return ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]


def test_pieces_that_are_tokens_stay_whole_where_the_family_says_so():
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, "the"]  # no merges lead to "the"
    assert byte_level(tokens, [NORMAL] * len(tokens), [], "llama-bpe").encode("the").ids == [256]
    assert len(byte_level(tokens, [NORMAL] * len(tokens), [], "qwen2").encode("the").ids) == 3


def slow_sentencepiece(text, ids, scores):
    """Score by score: join the best-scoring pair of neighbours until no pair is a piece."""
    symbols = list("▁" + text.replace(" ", "▁"))
    while True:
        pairs = [(-scores[ids[a + b]], i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in ids]
        if not pairs:
            return [i for s in symbols for i in ([ids[s]] if s in ids else [ids[f"<0x{b:02X}>"] for b in s.encode()])]
        at = min(pairs)[1]
        symbols[at:at + 2] = [symbols[at] + symbols[at + 1]]


@settings(max_examples=200, deadline=None)
@given(st.text("ab cé", min_size=1, max_size=30))
def test_sentencepiece_joins_the_best_pair_first(text):
    pieces = ["▁", "a", "b", "c", "▁a", "ab", "▁ab", "abc", "bc", "▁▁", "ca", "aab", "c▁"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    scores = [0.0] * 259 + [0, 0, 0, 0, -5, -2, -4, -9, -1, -3, -7, -6, -8]
    kinds = [UNKNOWN, CONTROL, CONTROL] + [6] * 256 + [NORMAL] * len(pieces)
    backend = sentencepiece(tokens, kinds, scores)
    ids = {token: i for i, token in enumerate(tokens)}
    assert backend.encode(text).ids == slow_sentencepiece(text, ids, scores)
    assert backend.decode(backend.encode(text).ids) == text
