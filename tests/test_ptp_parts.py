"""The student's parts: noise embedding, gated adapter, and the way back from disk."""

from dataclasses import replace

import pytest
import tiny
import torch

from baselines.independent import Independent
from bench import zoo
from bench.drafters import SCALE, Card, identity, packed, round_trip, save
from bench.errors import BenchError
from bench.sampling import NOISE_BITS, Law
from ptp.adapter import BoundAdapter, GatedAdapter, matrix_shapes
from ptp.decoding import PTP
from ptp.noise_embedding import FRONTS, HEADS, NONE, NoiseDesign, NoiseEmbedding
from ptp.student import Design, Student

TOP = (1 << NOISE_BITS) - 1


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("head", HEADS)
def test_every_front_end_and_head_embeds_noise(front, head):
    torch.manual_seed(0)
    embedding = NoiseEmbedding(NoiseDesign(front, head), 48, scale=0.2)
    noise = torch.randint(TOP + 1, (5, 200))
    noise[0, :3] = NONE
    out = embedding(noise)
    assert out.shape == (5, 200, 48)
    assert 0.05 < out[1:].std() < 0.4
    assert torch.equal(out[0, :3], embedding.none.expand(3, -1))
    out.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in embedding.parameters())


def features(front, values, **options):
    return NoiseEmbedding(NoiseDesign(front, **options), 8).features(torch.tensor(values))


def test_features_say_what_they_should():
    assert features("scalar", [0, 1 << 29, TOP]).flatten().tolist() == pytest.approx([-1, 0, 1], abs=1e-8)
    digits = features("digits", [0b1011, TOP])
    assert digits[0, :5].tolist() == [1, 1, -1, 1, -1]
    assert (digits[1] == 1).all()
    thresholds = features("thresholds", [0, 1 << 28, (1 << 28) + 1, TOP], thresholds=4)  # u <= i / 4
    assert thresholds.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [-1, 1, 1, 1], [-1, -1, -1, 1]]


def test_unknown_designs_are_refused():
    with pytest.raises(BenchError, match="front must be one of"):
        NoiseDesign("bits")
    with pytest.raises(BenchError, match="kind is one of"):
        Design(kind="x")


@pytest.fixture
def adapter():
    torch.manual_seed(0)
    adapter = GatedAdapter(tiny.CONFIG, rank=3).double()
    for parameter in adapter.parameters():
        parameter.data = torch.randn_like(parameter) / 3
    return adapter.requires_grad_(False)


def test_an_untrained_adapter_changes_nothing_and_learns_in_every_matrix():
    adapter = GatedAdapter(tiny.CONFIG, rank=2)
    for layer in range(tiny.CONFIG.layers):
        for name, (_, size) in matrix_shapes(tiny.CONFIG).items():
            out = adapter.delta(layer, name, torch.randn(2, 5, size))
            assert not out.any()
            out.sum().backward()
    assert all(layer[name].widen.grad.abs().sum() > 0 for layer in adapter.layers for name in layer)


def test_merged_weights_do_what_the_adapter_does(adapter):
    model = tiny.transformer()
    bound = BoundAdapter(adapter, model)
    assert bound.bytes == 0
    for layer, block in enumerate(model.blocks):
        onto = adapter.onto(model)[layer]
        for name, (out, size) in matrix_shapes(tiny.CONFIG).items():
            weight = getattr(block, name)
            assert weight.shape == (out, size)
            x = torch.randn(2, 5, size, dtype=torch.float64)
            apart = x @ weight.T + adapter.delta(layer, name, x)
            assert torch.allclose(apart, x @ adapter.merged(layer, name, weight).T, atol=1e-12)
            assert torch.equal(getattr(bound.merged(layer), name), adapter.merged(layer, name, weight))
            assert torch.allclose(getattr(onto, name), adapter.merged(layer, name, weight), atol=1e-12)
    assert bound.bytes == sum(weight.numel() * 8 for block in model.blocks for weight in block.parameters()
                              if weight.dim() == 2)


def test_token_rows_never_see_the_adapter(adapter):
    """Three token rows and two slots after them: the tokens' outputs are those of the plain model, bit for bit."""
    model = tiny.transformer()
    x, positions = torch.randn(1, 5, 16, dtype=torch.float64), torch.arange(5)[None]

    def causal(layer, q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    plain, gated = model(x, positions, causal).last, model(x, positions, causal, adapter, slots=2).last
    assert torch.equal(plain[:, :3], gated[:, :3])
    assert not torch.allclose(plain[:, 3:], gated[:, 3:])


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize(("method", "informed"), [(PTP, True), (Independent, False)])
def test_a_student_comes_back_from_its_card(method, informed, sequential, tmp_path):
    target = zoo.load("tiny")
    design = Design("c", slots=9, rank=2, informed=informed, noise=NoiseDesign(head="mlp", width=8),
                    sequential=sequential, sequential_width=300, blurred=sequential)  # large enough to be quantised
    made = Student(design, target.config)
    made.confidence["pick"].slope.fill_(0.7)
    card = Card(method.name, {"design": design.stored()}, "tiny", identity(target), "", Law(0.7), 1, 1.0, 1.0, 1.0)
    save(tmp_path / "x.safetensors", made, card)
    round_trip(made)
    settings = method.Settings(weights=str(tmp_path / "x.safetensors"))
    again = method.load(settings, target)
    assert again.design == (made.design if sequential else replace(made.design, sequential_width=512))
    assert (again.readout is not None) == sequential
    assert all((name in design.stored()) == sequential for name in ("sequential", "sequential_width", "blurred"))
    assert all(torch.equal(again.state_dict()[name], value) for name, value in made.state_dict().items())
    other = Independent if method is PTP else PTP
    with pytest.raises(BenchError, match=f"trained for {method.name}"):
        other.load(settings, target)


def test_the_readout_is_stored_in_more_bits_than_the_rest():
    made = Student(Design(rank=64, sequential=True), zoo.load("tiny").config)
    kinds = {name: value.dtype for name, value in packed(made).items() if name + SCALE in packed(made)}
    assert {name for name, kind in kinds.items() if kind == torch.int8} == {"readout.narrow", "readout.widen"}
    assert torch.uint8 in kinds.values()


@pytest.mark.parametrize("method", [PTP, Independent])
def test_random_targets_get_a_random_student_and_others_none(method):
    target = zoo.load("tiny")
    student = method.load(method.Settings(k=3), target)
    assert (student.design.slots, student.design.informed) == (4, method is PTP)
    with pytest.raises(BenchError, match=f"{method.name} has no drafter for tiny: train one"):
        method.load(method.Settings(), replace(target, random=False))


def test_the_cheapest_of_nearly_equal_ways_draws():
    student = Student(Design("o", slots=4, rank=2, informed=False, blurred=True), zoo.load("tiny").config)
    for kept, way in (((1.0, 1.005, 1.008), "argmax"), ((1.0, 1.02, 1.025), "pick"), ((1.0, 0.9, 1.02), "blurred")):
        for name, runs in zip(("argmax", "pick", "blurred"), kept, strict=True):
            student.confidence[name].runs[-1] = runs
        assert student.best_way(Law(0.7, 50)) == way
    assert student.best_way(Law()) == "greedy"
