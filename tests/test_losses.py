"""The loss over the vocabulary against sums that are written out, chunk by chunk, forth and back."""

import pytest
import tiny
import torch
import torch.nn.functional as F

from bench import losses
from bench.losses import Divergence, distil, either, of_law, of_tokens
from bench.sampling import Law

MODEL = tiny.transformer(seed=4)


@pytest.mark.parametrize("chunk", [7, 4096])
def test_losses_are_their_definitions(chunk, monkeypatch):
    """A mean over one row is that row's loss."""
    monkeypatch.setattr(losses, "CHUNK", chunk)
    torch.manual_seed(0)
    hidden, teacher = torch.randn(2, 24, 16).double().unbind()
    tokens, law = torch.randint(12, (len(hidden),)), Law(0.7, top_k=5)
    ways = {"one": (of_tokens(tokens), Divergence(0.7)), "kl": (of_law(MODEL, teacher, law), Divergence(0.7)),
            "reverse": (of_law(MODEL, teacher, law), Divergence(0.7, reverse=True))}
    means = dict.fromkeys(ways, 0.0)
    for at, row in enumerate(torch.eye(len(hidden), dtype=torch.bool)):
        q = (MODEL.score(hidden[at]) / 0.7).softmax(-1).double()
        choices = law(MODEL.score(teacher[at]))
        p = choices.dense(12).double() / choices.mass.sum()
        kept = [i for i in range(12) if p[i] > 0]
        assert len(kept) == 5
        floor = p.clamp(min=1 / choices.mass.sum().item())
        expected = {"one": -q[tokens[at]].log(), "kl": sum(p[i] * (p[i] / q[i]).log() for i in kept),
                    "reverse": (q * (q / floor).log()).sum()}
        for name, value in expected.items():
            assert float(distil(hidden, MODEL, ways[name][0], row, ways[name][1])) == pytest.approx(
                float(value), rel=1e-4, abs=1e-5)
            means[name] += float(value) / len(hidden)
    for name, mean in means.items():
        every = torch.ones(len(hidden), dtype=torch.bool)
        assert float(distil(hidden, MODEL, ways[name][0], every, ways[name][1])) == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_are_those_of_the_written_out_loss(reverse, trained, monkeypatch):
    """To the hidden states, and to the head where it is trained; some rows do not count."""
    monkeypatch.setattr(losses, "CHUNK", 7)
    torch.manual_seed(0)
    model, law = tiny.transformer(), Law(0.7, top_k=5)
    model.head.requires_grad_(trained)
    hidden, teacher = torch.randn(2, 20, 16).double().unbind()
    hidden.requires_grad_()
    inputs, valid = [hidden] + [model.head] * trained, torch.rand(20) < 0.7
    loss = distil(hidden, model, of_law(model, teacher, law), valid, Divergence(0.7, reverse))
    ours = torch.autograd.grad(2 * loss, inputs)
    log_q = (hidden @ model.head.T / 0.7).log_softmax(-1)
    with torch.no_grad():
        choices = law(model.score(teacher))
        p = choices.dense(12).double() / choices.mass.sum(-1, keepdim=True)
    if reverse:
        plain = (log_q.exp() * (log_q - p.clamp(min=losses.FLOOR).log())).sum(-1)
    else:
        plain = (torch.xlogy(p, p) - p * log_q).sum(-1)
    for found, wanted in zip(ours, torch.autograd.grad(2 * plain[valid].mean(), inputs), strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)
        assert wanted.abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_frozen_head_has_the_gradient_of_an_ordinary_one(dtype):
    torch.manual_seed(0)
    model = tiny.transformer().to(dtype)
    hidden, tokens = torch.randn(9, 16, dtype=dtype, requires_grad=True), torch.randint(12, (9,))
    loss = distil(hidden, model, of_tokens(tokens), torch.ones(9, dtype=torch.bool))
    loss.backward()
    logits = model.score(hidden.detach()).requires_grad_()
    plain = torch.nn.functional.cross_entropy(logits, tokens)
    expected = torch.autograd.grad(plain, logits)[0] @ model.head.float()
    assert torch.allclose(loss, plain, atol=1e-5)
    assert torch.allclose(hidden.grad.float(), expected, atol=1e-6 if dtype == torch.float32 else 0.1 / 9, rtol=0.01)
    assert loss.dtype == torch.float32


def test_the_mean_is_over_valid_rows():
    hidden, tokens = torch.randn(3, 16).double(), torch.randint(12, (3,))
    hidden[2] = torch.nan
    some, none = torch.tensor([True, True, False]), torch.zeros(3, dtype=torch.bool)
    alone = [distil(hidden, MODEL, of_tokens(tokens), torch.arange(3) == i) for i in range(2)]
    assert float(distil(hidden, MODEL, of_tokens(tokens), some)) == pytest.approx(float(sum(alone)) / 2, rel=1e-5)
    assert distil(hidden, MODEL, of_tokens(tokens), none) == 0


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_loss_over_chunks_is_the_plain_one(monkeypatch, temperature):
    monkeypatch.setattr(losses, "CHUNK", 7)
    target = tiny.transformer()
    hidden = torch.randn(30, 16, dtype=torch.float64).requires_grad_()
    tokens, every = torch.randint(12, (30,)), torch.ones(30, dtype=torch.bool)
    total = distil(hidden, target, of_tokens(tokens), every, Divergence(temperature))
    [ours] = torch.autograd.grad(total, hidden)
    plain = F.cross_entropy(target.score(hidden) / temperature, tokens)
    assert torch.allclose(ours, torch.autograd.grad(plain, hidden)[0], atol=1e-6)
    assert torch.allclose(total, plain, atol=1e-5)


@pytest.mark.parametrize("law", tiny.LAWS.values())
def test_distillation_is_the_kl_divergence(law):
    target, temperature, every = tiny.transformer(), law.temperature or 1.0, torch.ones(30, dtype=torch.bool)
    taught, hidden = torch.randn(2, 30, 16, dtype=torch.float64).unbind()
    got = distil(hidden, target, of_law(target, taught, law), every, Divergence(temperature))
    mass = law(target.score(taught)).dense(12).double()
    p, log_q = mass / mass.sum(-1, keepdim=True), (target.score(hidden).double() / temperature).log_softmax(-1)
    assert torch.allclose(got.double(), F.kl_div(log_q, p, reduction="batchmean"), atol=1e-4)
    if law == Law(1.0):
        assert distil(taught, target, of_law(target, taught, law), every).abs() < 1e-5


@pytest.mark.parametrize("reverse", [False, True])
def test_rows_may_have_goals_of_two_kinds(reverse):
    """A token that the law gives a chance as well stands there twice."""
    taught, hidden = torch.randn(2, 30, 16).double().unbind()
    tokens, where, divergence = torch.randint(12, (30,)), torch.rand(30) < 0.5, Divergence(0.7, reverse)
    law = of_law(MODEL, taught, Law(0.7, top_k=5))
    both = either(of_tokens(tokens), law, where)
    for goals, rows in ((of_tokens(tokens), where), (law, ~where)):
        assert torch.allclose(*(distil(hidden, MODEL, g, rows, divergence) for g in (both, goals)))
        alone = [torch.autograd.grad(distil(x, MODEL, g, rows, divergence), x)[0]
                 for g in (both, goals) for x in [hidden.clone().requires_grad_()]]
        assert torch.allclose(*alone)
