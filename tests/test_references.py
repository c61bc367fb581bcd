"""transformers' generate beside our loop: the same weights, the same greedy text, and times that add up."""

import time
from dataclasses import replace

import judged
import pytest
import tiny
import torch

from baselines.references import Reference, spread, twin
from bench import zoo
from bench.clip import clip
from bench.errors import BenchError
from bench.noise import NoiseKey
from bench.record import check
from bench.sampling import Law
from bench.sequences import Prompt
from bench.timing import PHASES
from bench.zoo.synthetic import KINDS

END = 257
IDS = torch.randint(0, 256, (4, 40), generator=torch.Generator().manual_seed(3)).tolist()
PROMPTS = [Prompt(IDS[i][:length], NoiseKey(0, i)) for i, length in enumerate((1, 7, 23, 40))]


def target(kind="llama", dtype=torch.float32):
    return zoo.load(f"tiny:kind={kind}", "cpu", dtype).model


@pytest.mark.parametrize("kind", KINDS)
def test_the_twin_computes_the_same_from_the_same_memory(kind):
    model = target(kind)
    other = twin(model)
    ids = torch.tensor([IDS[3], IDS[2]])
    expected = model.logits(ids)
    assert expected.std() > 1
    assert (other(ids).logits - expected).abs().max() < 1e-4
    ours = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert {p.untyped_storage().data_ptr() for p in other.parameters()} == ours


def test_the_twin_is_tied_where_the_target_is():
    tied, free = twin(target("qwen2")), twin(target("llama"))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert free.lm_head.weight is not free.model.embed_tokens.weight


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end_ids", [frozenset(), frozenset({END, 10, 77, 130})])
def test_greedy_ids_are_those_of_the_loop(kind, end_ids):
    model = target(kind)
    loop = tiny.decoder_of(tiny.registered("autoregressive", model), model, Law(), 1)
    reference = Reference("hf_eager", model, Law(), 64)
    for prompt in PROMPTS:
        raw = loop.decode([prompt], 24, end_ids)
        ours = clip(raw.tokens[0], [0] * len(raw.tokens[0]), 24, end_ids).tokens
        assert reference.decode([prompt], 24, end_ids).tokens == [ours]


@pytest.mark.parametrize("law", [Law(0.7), Law(1.0, top_k=3), Law(1.0, top_p=0.5), Law(0.5, 20, 0.9)])
def test_sampled_ids_follow_the_law(law):
    """Random numbers of its own, but only ids that the law can give, and not always the likeliest."""
    model = target()
    reference, ids = Reference("hf_eager", model, law, 64), PROMPTS[2].ids
    text = reference.decode([PROMPTS[2]], 30).tokens[0]
    logits = model.logits(torch.tensor([[*ids, *text]]))[0, len(ids) - 1 : -1]
    mass = law(logits).dense(logits.shape[-1])
    assert (mass[range(30), text] > 0).all()
    assert text != logits.argmax(-1).tolist()
    assert text == reference.decode([PROMPTS[2]], 30).tokens[0]  # the noise key is the seed
    assert text != reference.decode([replace(PROMPTS[2], noise=NoiseKey(1, 2))], 30).tokens[0]


def test_top_k_is_off_unless_asked_for():
    """transformers' own default is 50."""
    reference = Reference("hf_eager", target(), Law(50.0), 64)
    raw = reference.decode([PROMPTS[1]], 40)
    logits = target().logits(torch.tensor([[*PROMPTS[1].ids, *raw.tokens[0]]]))[0, 6:-1]
    ranks = (logits > logits[range(40), raw.tokens[0]][:, None]).sum(-1)
    assert ranks.max() > 50


def test_times_add_up():
    raw = spread([5, 6, 7, 8], first_ms=50.0, rest_ms=30.0, wall_ms=33.0)
    assert raw.phases == {name: [10.0 if name == "forward" else 0.0] * 4 for name in PHASES}
    assert (raw.prefill_ms, raw.wall_ms) == (40.0, 44.0)
    assert spread([5, 6, 7], 8.0, 20.0, 20.0).prefill_ms == 0  # never negative
    alone = spread([5], first_ms=50.0, rest_ms=0.1, wall_ms=0.1)
    assert (alone.phases["forward"], alone.prefill_ms, alone.wall_ms) == ([50.0], 0, 50.0)


def test_records_are_consistent_and_the_clock_is_right():
    work = [tiny.Group((prompt,)) for prompt in PROMPTS]
    reference = Reference("hf_eager", target(), Law(), 64)
    facts = judged.settings(Law(), work, 16) | {"lossless": "reference"}
    for record in judged.recorded("hf_eager", reference, facts, work):
        check(record)
        assert record.kept == record.rows == [1] * 16
        assert not any(record.drafted + record.accepted)
        assert sum(record.phases["forward"]) == pytest.approx(record.wall_ms, rel=0.03)
    begin = time.perf_counter()
    raw = reference.decode([PROMPTS[3]], 16)
    total = (time.perf_counter() - begin) * 1000
    step = raw.phases["forward"][0]
    assert 0.5 * total < raw.prefill_ms + sum(raw.phases["forward"]) - step <= total
    assert raw.prefill_ms > 0


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(BenchError, match="hf_static needs a CUDA device"):
        Reference("hf_static", target(), Law(), 64)
    with pytest.raises(BenchError, match="use --batch 1"):
        Reference("hf_eager", target(), Law(), 64).decode(PROMPTS[:2], 4)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.slow
def test_the_static_cache_gives_the_same_text():
    model = zoo.load("tiny", "cuda", torch.float32).model
    eager, static = (Reference(name, model, Law(), 64) for name in ("hf_eager", "hf_static"))
    for prompt in PROMPTS:
        assert eager.decode([prompt], 24).tokens == static.decode([prompt], 24).tokens
