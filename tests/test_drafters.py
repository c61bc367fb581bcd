"""Drafters on disk: how much is lost, and what is refused."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from baselines.draft_lesson import Layers
from baselines.draft_model import DraftModel
from baselines.draft_model import Settings as DraftSettings
from baselines.medusa import Heads, Medusa
from baselines.medusa import Settings as MedusaSettings
from bench import drafters, zoo
from bench.__main__ import main
from bench.drafters import SCALE, Card, digest, identity, load, quantised, restored, round_trip, save, shipped
from bench.errors import BenchError
from bench.quantisation import pack, unpack
from bench.record import read
from bench.sampling import Law
from bench.sequences import Sequences

TARGET = zoo.load("tiny")
CARD = Card("medusa", {"heads": 2}, "tiny", "tiny", "0" * 64, Law(0.7, 50), 10, 0.5, 1.5, 1.4)


class Module(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        scales = torch.logspace(-4, 2, 64)[:, None]  # rows of very different sizes
        self.wide = nn.Parameter(torch.randn(64, 96, generator=random) * scales)
        self.small = nn.Parameter(torch.randn(3, 4, generator=random))
        self.norm = nn.Parameter(torch.randn(96, generator=random))


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "drafter.safetensors"
    save(file, Module(), CARD)
    return file


def test_large_matrices_are_packed_and_all_else_is_as_it_was():
    module = Module()
    stored = quantised(module.state_dict())
    back = restored(stored)
    assert torch.equal(back["wide"], unpack(*pack(module.wide.detach())))
    assert not torch.equal(back["wide"], module.wide)
    assert torch.equal(back["small"], module.small)
    assert torch.equal(back["norm"], module.norm)
    assert sum(value.nbytes for value in stored.values()) == 64 * 96 // 2 + 64 * 96 // 32 * 2 + 4 * (3 * 4 + 96)


def test_what_comes_back_is_what_was_measured(path):
    module = Module()
    round_trip(module)
    back = load(path, "medusa", TARGET).into(Module(seed=1))
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), back.state_dict().values(), strict=True))
    assert not any(p.requires_grad for p in back.parameters())


def test_storing_twice_changes_nothing():
    once = quantised(Module().state_dict())
    twice = quantised(restored(once))
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_the_file_is_small_and_has_a_card(path):
    assert path.stat().st_size < 64 * 96 * 4.5 / 8 + 2000
    card = load(path, "medusa", TARGET).card
    assert replace(card, sha256="") == CARD
    assert len(card.sha256) == 64


def test_files_with_8_bits_a_number_still_load(tmp_path):
    module, path = Module(), tmp_path / "old.safetensors"
    scale = module.wide.detach().abs().amax(1, keepdim=True) / 127
    tensors = {"wide": (module.wide.detach() / scale).round().to(torch.int8), "wide" + SCALE: scale,
               "small": module.small.detach(), "norm": module.norm.detach()}
    save_file(tensors, path, metadata={"card": json.dumps(asdict(replace(CARD, sha256=digest(tensors))))})
    back = load(path, "medusa", TARGET).into(Module(seed=1))
    assert ((back.wide - module.wide).abs() <= 0.501 * scale).all()
    assert torch.equal(back.small, module.small)


def tampered(path, change):
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(metadata, tensors)
    save_file(tensors, path, metadata=metadata)


def test_one_changed_number_is_noticed(path):
    tampered(path, lambda _, tensors: tensors["wide"].add_(1))
    with pytest.raises(BenchError, match="damaged"):
        load(path, "medusa", TARGET)


def test_a_changed_scale_is_noticed(path):
    tampered(path, lambda _, tensors: tensors["wide" + SCALE].mul_(1.5))
    with pytest.raises(BenchError, match="damaged"):
        load(path, "medusa", TARGET)


def test_a_torn_file_is_refused(path):
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BenchError, match="not a drafter that can be read"):
        load(path, "medusa", TARGET)


def test_an_unknown_field_of_the_card_is_refused(path):
    def change(metadata, _):
        metadata["card"] = json.dumps(json.loads(metadata["card"]) | {"colour": "red"})

    tampered(path, change)
    with pytest.raises(BenchError, match="not a drafter that can be read"):
        load(path, "medusa", TARGET)


def test_another_method_target_or_shape_is_refused(path):
    with pytest.raises(BenchError, match="trained for medusa, not for draft_model"):
        load(path, "draft_model", TARGET)
    with pytest.raises(BenchError, match="another target"):
        load(path, "medusa", zoo.load("tiny:seed=1"))
    with pytest.raises(BenchError, match=r"drafter\.safetensors: .*Unexpected key"):
        load(path, "medusa", TARGET).into(nn.Linear(2, 2))
    with pytest.raises(BenchError, match="size mismatch"):
        odd = Module()
        odd.norm = nn.Parameter(torch.zeros(5))
        load(path, "medusa", TARGET).into(odd)


def test_no_file_and_no_place(tmp_path):
    with pytest.raises(BenchError, match="not a drafter that can be read"):
        load(tmp_path / "nowhere", "medusa", TARGET)
    (tmp_path / "plain").write_text("")
    with pytest.raises(BenchError, match="choose another --out"):
        save(tmp_path / "plain" / "x.safetensors", Module(), CARD)


def test_identity_is_the_hash_or_the_name():
    assert identity(TARGET) == "tiny"
    assert identity(replace(TARGET, checksum="ab")) == "ab"


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A target that has drafters of its own in the package."""
    monkeypatch.setattr(drafters, "SHIPPED", tmp_path)
    monkeypatch.setitem(zoo.PACKAGED, "small", lambda: None)
    return replace(TARGET, name="small", random=False)


def test_a_drafter_that_ships_is_found_by_the_targets_name(packaged, tmp_path):
    heads = Heads(64, 2, ranks=4)
    with pytest.raises(BenchError, match=r"medusa has no drafter for small: train one .* medusa:weights=FILE"):
        Medusa.load(MedusaSettings(), packaged)
    save(tmp_path / "small" / "medusa.safetensors", heads, replace(CARD, options={"heads": 2, "ranks": 4},
                                                                   checksum=identity(packaged)))
    assert Medusa.load(MedusaSettings(), packaged).accuracy.shape == (2, 4)
    with pytest.raises(BenchError, match="another target"):
        Medusa.load(MedusaSettings(), replace(packaged, checksum="f" * 64))
    assert shipped("ptp", "small") is None
    assert shipped("medusa", "tiny") is None  # random targets have random drafters


def test_a_file_that_is_named_wins(packaged, tmp_path):
    for heads, path in ((2, tmp_path / "small" / "medusa.safetensors"), (3, tmp_path / "mine.safetensors")):
        save(path, Heads(64, heads, ranks=4), replace(CARD, options={"heads": heads, "ranks": 4},
                                                      checksum=identity(packaged)))
    assert Medusa.load(MedusaSettings(weights=str(tmp_path / "mine.safetensors")), packaged).accuracy.shape == (3, 4)


@pytest.mark.parametrize("place", ["..", ".", "small/..", "smaller"])
def test_only_names_of_the_package_are_looked_up(packaged, tmp_path, place):
    (tmp_path / "medusa.safetensors").touch()
    (tmp_path / "smaller").mkdir()
    (tmp_path / "smaller" / "medusa.safetensors").touch()
    assert shipped("medusa", place) is None


def test_list_shows_what_ships(packaged, tmp_path, capsys):
    card = replace(CARD, notes={"stored": {"sampled": 1.4, "greedy": 1.62}})
    save(tmp_path / "small" / "medusa.safetensors", Heads(64, 2), card)
    assert main(["list"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "small medusa 1.40 tokens per step on held-out text (T=0.7, top-k 50), 1.62 greedy; 10 steps" in text


@pytest.mark.parametrize(("options", "message"), [({"blur": float("nan")}, "such as 0.1"),
                                                  ({"blur": 0.1, "verify": "reject"}, "leave blur out")])
def test_a_blur_that_makes_no_sense(options, message):
    with pytest.raises(BenchError, match=message):
        DraftSettings(**options)


@pytest.fixture
def layers():
    """A shallow draft model that was trained a little."""
    made, random = Layers(TARGET.model, 2), torch.Generator().manual_seed(0)
    made.begin()
    for weight in made.parameters():
        weight.data += 0.1 * weight.std() * torch.randn(weight.shape, generator=random)
    return made


def test_of_layers_that_began_as_the_targets_only_the_change_is_quantised(layers, tmp_path):
    trained = {name: value.clone() for name, value in layers.state_dict().items()}
    card = save(tmp_path / "x", layers, replace(CARD, method="draft_model"))
    assert card.relative
    back = load(tmp_path / "x", "draft_model", TARGET).into(Layers(TARGET.model, 2)).state_dict()
    for name, value in trained.items():
        if name + SCALE in quantised(trained):
            error, change = (back[name] - value).norm(), (value - layers.origin[name]).norm()
            assert 0.06 < error / change < 0.09
            assert error < 0.01 * value.norm()
        else:
            assert torch.allclose(back[name], value, atol=1e-6)
    round_trip(layers)
    assert all(torch.equal(back[name], value) for name, value in layers.state_dict().items())
    assert save(tmp_path / "y", layers, card).sha256 == card.sha256


def test_whole_layers_still_load(layers, tmp_path):
    """Older files hold the weights, not the change."""
    tensors = {name: value.clone() for name, value in layers.state_dict().items()}
    about = asdict(replace(CARD, method="draft_model", sha256=digest(tensors)))
    del about["relative"]
    save_file(tensors, tmp_path / "x", metadata={"card": json.dumps(about)})
    back = load(tmp_path / "x", "draft_model", TARGET).into(Layers(TARGET.model, 2)).state_dict()
    assert all(torch.equal(back[name], value) for name, value in tensors.items())


def test_a_shallow_draft_model_that_ships(packaged, tmp_path):
    layers = Layers(TARGET.model, 1)
    layers.begin()
    save(tmp_path / "small" / "draft_model.safetensors", layers, replace(
        CARD, method="draft_model", options={"layers": 1, "k": 4}, checksum=identity(packaged)))
    assert len(DraftModel.load(DraftSettings(), packaged).blocks) == 1
    sequences = Sequences(packaged.model, 1, 32, widest=8)
    for stored, asked, verify, expected in ((None, -1, "match", 0), (0.25, -1, "match", 0.25), (0.25, 0, "match", 0),
                                            (None, 0.5, "match", 0.5), (0.25, -1, "reject", 0)):
        layers = Layers(packaged.model, 1, blurred=stored is not None)
        options = {"layers": 1, "k": 4} | ({} if stored is None else {"blurred": True})
        if stored is not None:
            layers.width.fill_(stored)
        save(tmp_path / "small" / "draft_model.safetensors", layers, replace(
            CARD, method="draft_model", options=options, checksum=identity(packaged)))
        settings = DraftSettings(blur=asked, verify=verify)
        made = DraftModel(sequences, Law(0.7), settings, DraftModel.load(settings, packaged))
        assert made.settings.blur == expected
        assert DraftModel(sequences, Law(), settings, made.drafter).settings.blur == 0
    with pytest.raises(BenchError, match="draft_model:draft=FILE"):
        DraftModel.load(DraftSettings(), replace(packaged, name="another"))
    assert len(DraftModel.load(DraftSettings(), zoo.load("tiny:layers=9")).blocks) == 3  # random: its own, untrained


def test_what_ships_is_whole_and_small():
    """All drafters in the package: each belongs to the method and the target whose name it bears."""
    files = sorted(drafters.SHIPPED.rglob("*.*"))
    assert sum(path.stat().st_size for path in files) <= 14 * 2**20
    for path in files:
        card, stored = drafters.read(path)
        assert (path.suffix, path.stem, path.parent.name) == (".safetensors", card.method, card.target)
        assert shipped(card.method, card.target) == path
        assert digest(stored) == card.sha256


@pytest.mark.parametrize("law, greedy, said", [
    (Law(0.7, 50), 0.0, ""), (Law(0.7, 20), 0.2, "trained for T=0.7, top-k 50"), (Law(), 0.2, ""),
    (Law(), 0.0, "trained for T=0.7, top-k 50")])
def test_a_card_says_when_it_is_asked_for_another_law(law, greedy, said):
    assert replace(CARD, notes={"greedy": greedy}).remark(law) == said


def test_a_run_says_what_its_drafters_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    card = save(Path("heads.safetensors"), Heads(64, 2), replace(CARD, options={"heads": 2, "ranks": 16}))
    assert main(["run", "--suite", "smoke", "--limit", "1", "--max-new-tokens", "4", "--device", "cpu", "--out", "out",
                 "--methods", "medusa:weights=heads.safetensors,medusa:rows=4"]) == 0
    label = "medusa:weights=heads.safetensors"
    assert json.loads(Path("out/provenance.json").read_text())["files"][f"drafter of {label}"] == card.sha256
    rows = [line for line in Path("out/report.md").read_text().splitlines() if line.startswith(f"| {label} ")]
    assert "trained for T=0.7, top-k 50" in rows[0]
    assert {record.method: record.settings["remark"] for record in read("out")} == {
        "autoregressive": "", "autoregressive-twin": "", "medusa:rows=4": "", label: "trained for T=0.7, top-k 50"}
    other = Heads(64, 2)
    other.accuracy.fill_(0.1)
    save(Path("heads.safetensors"), other, card)
    assert main(["run", "--resume", "out"]) == 2
    assert "the drafter of medusa:weights=heads.safetensors of out had sha256" in capsys.readouterr().err
