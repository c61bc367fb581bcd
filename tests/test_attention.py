"""Block-sparse masks and compiled layers against the dense, plain ones: what runs on CUDA, made to run here."""

from functools import partial

import pytest
import torch
from test_packing import texts
from torch.nn.attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from bench import attention, product, programs, zoo
from bench.attention import dense, mask_of
from bench.methods import lesson
from bench.packing import Reader
from bench.reading import read
from bench.sampling import Law
from ptp.bins import Drawn
from ptp.completions import Completions, complete, random_starts, under
from ptp.kinds import KINDS
from ptp.student import Design, Student

TINY = zoo.load("tiny")
BATCH, OTHER = (Reader(texts(20), 2, 150, seed=3).at(step) for step in (0, 1))


def slots_of(batch, groups, slots, kind="o"):
    torch.manual_seed(0)
    starts, noise = random_starts(batch, groups), torch.randint_like(batch.tokens, 1 << 30)
    drawn = Drawn(noise, torch.ones_like(noise, dtype=torch.bool))
    return Completions.of(batch, KINDS[kind], starts, under(drawn, starts, slots))


def test_tokens_see_their_text_up_to_themselves():
    visible = dense(BATCH.sees(), (2, 150, 150), torch.device("cpu"))
    for row, ids in enumerate(BATCH.texts.tolist()):
        slow = [[a == b and j <= i for j, b in enumerate(ids)] for i, a in enumerate(ids)]
        assert visible[row, 0].tolist() == slow


@pytest.mark.parametrize("slots", [1, 3, 4])
def test_slots_see_their_prefix_and_their_group(slots):
    made = slots_of(BATCH, 5, slots)
    visible = dense(made.sees(BATCH), (2, 5 * slots, 150 + 5 * slots), torch.device("cpu"))
    for row, ids in enumerate(BATCH.texts.tolist()):
        for at in range(5 * slots):
            start = int(made.starts[row, at // slots])
            prefix = [text == ids[start] and i <= start for i, text in enumerate(ids)]
            group = [other // slots == at // slots and other <= at for other in range(5 * slots)]
            assert visible[row, 0, at].tolist() == prefix + group


@pytest.mark.parametrize("what", ["tokens", "slots"])
def test_a_block_mask_says_the_same_and_is_sparse(what, monkeypatch):
    """Every block that a dense mask needs is there, and with ascending starts few others are."""
    batch = Reader(texts(60), 2, 512, seed=3).at(0)
    made = slots_of(batch, 64, 8)
    sees, shape = {"tokens": (batch.sees(), (2, 512, 512)), "slots": (made.sees(batch), (2, 512, 1024))}[what]
    plain = dense(sees, shape, torch.device("cpu"))
    monkeypatch.setattr(attention, "fast", lambda _: True)
    blocks = mask_of(sees, shape, batch.tokens)
    assert torch.equal(flex_attention.create_mask(blocks.mask_mod, 2, 1, *shape[1:], "cpu"), plain)
    usual = flex_attention.create_block_mask(sees, 2, None, *shape[1:], "cpu", BLOCK_SIZE=attention.BLOCK)
    lists = [name for name, value in vars(usual).items() if isinstance(value, torch.Tensor)]
    assert len(lists) == 8
    assert all(torch.equal(getattr(blocks, name), getattr(usual, name)) for name in lists)
    size = attention.BLOCK
    needed = plain.unfold(2, size, size).unfold(3, size, size).flatten(4).any(-1)
    assert torch.equal(blocks.to_dense().bool(), needed)
    assert needed.float().mean() < 0.5


def test_frozen_columns_are_seen_but_send_nothing_back(monkeypatch):
    monkeypatch.setattr(attention, "fast", lambda _: True)
    batch = Reader(texts(60), 2, 512, seed=3).at(0)
    made, shape = slots_of(batch, 64, 8), (2, 512, 1024)
    usual, frozen = (mask_of(made.sees(batch), shape, batch.tokens, columns) for columns in (0, 300))
    whole = 300 // attention.BLOCK
    assert usual.q_num_blocks[..., :whole].all()
    assert torch.equal(frozen.to_dense(), usual.to_dense())
    for kind in ("q_num_blocks", "full_q_num_blocks"):
        before, after = getattr(usual, kind), getattr(frozen, kind)
        assert not after[..., :whole].any()  # there remains a part of a block, which must stay
        assert torch.equal(after[..., whole:], before[..., whole:])


@pytest.fixture
def compiled(monkeypatch):
    """The route that CUDA takes, with a compiler that needs no GPU. Holds the programs that it makes."""
    made = []

    def backend(graph, inputs):
        made.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(programs, "fast", lambda _: True)
    monkeypatch.setattr(attention, "fast", lambda _: True)
    monkeypatch.setattr(product, "SERVED", frozenset())  # a CPU's own way to multiply is not CUDA's
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)  # it refuses to train on a CPU
    monkeypatch.setattr(programs, "compiled", partial(torch.compile, dynamic=False, fullgraph=True, backend=backend))
    programs.program.cache_clear()
    yield made
    programs.program.cache_clear()
    torch._dynamo.reset()


def outputs(model, student, batch, groups=4):
    """A pass over a batch and one over its slots, with gradients to all that is trained."""
    reading, made = read(model, batch), slots_of(batch, groups, student.design.slots)
    hidden = complete(model, student.adapter, reading, made, student.embed(made.noise).to(model.norm.dtype))
    parameters = [p for p in student.parameters() if p is not student.embedding.none]
    return [reading.hidden, hidden, *torch.autograd.grad((hidden**2).sum(), parameters)]


def test_the_compiled_route_computes_the_same(request):
    torch.manual_seed(0)
    model = zoo.load("tiny:layers=4").model
    student = Student(Design(slots=3, rank=4), model.config)
    for parameter in student.adapter.parameters():
        parameter.data = torch.randn_like(parameter) / 8
    plain = [outputs(model, student, batch) for batch in (BATCH, OTHER)]
    programs_made = request.getfixturevalue("compiled")
    for batch, wanted in zip((BATCH, OTHER), plain, strict=True):
        found = outputs(model, student, batch)
        for a, b in zip(found, wanted, strict=True):
            assert torch.allclose(a, b, atol=1e-5 * float(b.detach().abs().max()))
    assert len(programs_made) == 2  # one for all layers of tokens, one for all layers of slots


@pytest.mark.parametrize(("text", "count"), [
    ("ptp:slots=3:rank=4:groups=4", 3),  # tokens, slots, loss
    ("independent:slots=3:rank=4:groups=4:kind=c", 3),
    ("medusa:heads=2", 2),
    ("draft_model:layers=2", 4),  # the target's layers, the draft's first, its others (whose input has a gradient)
])
def test_every_training_has_few_programs(text, count, compiled):
    one = lesson(text, TINY, Law(0.7, top_k=50))
    for batch in (BATCH, OTHER):
        one.loss(batch).backward()
    assert len(compiled) == count


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("groups", [64, 63])  # whole blocks of slots, and a last one in part
def test_a_gpu_computes_the_same_compiled(groups):
    """In bf16: to a few hundredths of the size of each output, gradients included."""
    torch.manual_seed(0)
    model = zoo.load("tiny:layers=4", "cuda", torch.bfloat16).model
    student = Student(Design(slots=8, rank=4), model.config).cuda()
    batch = Reader(texts(80), 4, 512, 3).at(0).to("cuda")
    for parameter in student.adapter.parameters():
        parameter.data = torch.randn_like(parameter) / 8
    found = outputs(model, student, batch, groups)
    with programs.plainly():
        wanted = outputs(model, student, batch, groups)
    for a, b in zip(found, wanted, strict=True):
        assert (a.float() - b.float()).norm() < 0.05 * b.float().norm()


class Waits(TorchDispatchMode):
    """Notes every operation that would make the host wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if masks or name in ("_local_scalar_dense", "nonzero", "masked_select", "multinomial", "equal"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("text", [
    "ptp:slots=3:rank=4:groups=4:beta=0.5", "ptp:slots=3:rank=4:groups=4:kind=c",
    "ptp:slots=3:rank=4:groups=4:kind=c:teacher=false", "ptp:slots=3:rank=4:groups=4:kind=c:reverse=true",
    "independent:slots=3:rank=4:groups=4", "medusa:heads=2", "draft_model:layers=1",
])
def test_no_step_waits_for_the_device(text):
    one = lesson(text, TINY, Law(0.7, top_k=50))
    with Waits() as waits:
        one.loss(BATCH).backward()
    assert not waits.found


def test_neither_does_a_block_mask(monkeypatch):
    monkeypatch.setattr(attention, "fast", lambda _: True)
    made = slots_of(BATCH, 5, 4)
    with Waits() as waits:
        mask_of(made.sees(BATCH), (2, 20, 170), BATCH.tokens)
    assert not waits.found
    with Waits() as waits:
        BATCH.tokens[BATCH.texts == 0].sum().item()
    assert waits.found == ["index", "_local_scalar_dense"]
