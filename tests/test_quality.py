"""Quality: the adapter gives lm-eval the loop's very texts, items are judged rightly, and methods are compared."""

import json
from pathlib import Path

import checkpoints
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate

from bench import quality, suite, tasks, zoo
from bench.__main__ import main
from bench.errors import BenchError
from bench.harness import HarnessModel, Made
from bench.measure import Team
from bench.prompts import QUALITY
from bench.quality import Answer, Result, compare, mcnemar
from bench.record import BASELINE

torch.set_num_threads(1)
TEXTS = ("a b c a b c a b", "Who?", "ab ab ab ab ab ab ab ab", "x" * 40, "The end")
DRAFTING = "prompt_lookup:k=3"


@pytest.fixture(scope="module")
def target():
    return zoo.load("tiny", "cpu", torch.float64)


def model(target, label="autoregressive", **given) -> HarnessModel:
    settings = suite.RunSettings(target="tiny", methods=(DRAFTING,), device="cpu", dtype="float64", **given)
    return HarnessModel(Team(settings, target, 512), label)


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


def chat(lm: HarnessModel, text: str) -> str:
    return lm.apply_chat_template([{"role": "user", "content": text}])


def said(lm: HarnessModel, until=(), limits=(12,)) -> list[str]:
    """What the model answers to all texts; limits take turns."""
    wishes = [(chat(lm, text), {"until": list(until), "max_gen_toks": limits[i % len(limits)]})
              for i, text in enumerate(TEXTS)]
    return lm.generate_until(requests("generate_until", *wishes))


def encoded(target) -> list[list[int]]:
    return [target.tokenizer.chat([{"role": "user", "content": text}]) for text in TEXTS]


def greedy(target, ids: list[int], count: int) -> list[int]:
    """The obvious loop: no cache, ends after an end id."""
    ids, start = list(ids), len(ids)
    while len(ids) < start + count and not (len(ids) > start and ids[-1] in target.end_ids):
        ids.append(int(target.model.logits(torch.tensor([ids]))[0, -1].argmax()))
    return ids[start:]


def test_texts_are_those_of_the_obvious_loop(target):
    found = said(model(target), limits=(12, 5))
    for i, ids in enumerate(encoded(target)):
        assert found[i] == target.tokenizer.decode(greedy(target, ids, (12, 5)[i % 2]))
    assert len(set(found)) == len(TEXTS)


@pytest.mark.parametrize("given", [{}, {"temperature": 0.2}])
def test_methods_and_batches_make_no_difference(target, given):
    plain, drafting = model(target, **given), model(target, DRAFTING, **given)
    together = model(target, DRAFTING, batch=3, **given)
    assert said(plain, limits=(24,)) == said(drafting, limits=(24,)) == said(together, limits=(24,))
    assert plain.made.texts == drafting.made.texts == together.made.texts
    assert plain.made.tokens == plain.made.steps > drafting.made.steps
    assert together.made.ms > 0
    assert (plain.made.texts == [greedy(target, ids, 24) for ids in encoded(target)]) == (given == {})


def test_a_text_ends_before_the_first_stop_string(target):
    whole = said(model(target))
    early, *_, late = [letter for letter in whole[0][1:] if whole[0].count(letter) == 1]
    cut = said(model(target), until=(late, early))
    assert cut[0] == whole[0][: whole[0].index(early)] != ""
    assert cut == [text.split(late)[0].split(early)[0] for text in whole]


def test_a_limit_of_ones_own_holds_for_all(target):
    lm = model(target)
    lm.max_new_tokens = 3
    said(lm)
    assert max(map(len, lm.made.texts)) == 3


def test_what_does_not_fit_is_refused(target):
    with pytest.raises(BenchError, match=r"request 0 needs \d+ \+ 12 positions, the model has 4096"):
        lm = model(target)
        lm.generate_until(requests("generate_until", ("x" * 4090, {"max_gen_toks": 12})))


def test_conversations_are_encoded_as_runs_do(target):
    lm, history = model(target), [{"role": "user", "content": 'Say "é"\n'}]
    ids = target.tokenizer.chat(history)
    assert lm.tok_encode(lm.apply_chat_template(history)) == ids
    begun = lm.apply_chat_template([*history, {"role": "assistant", "content": "Sure"}], add_generation_prompt=False)
    assert lm.tok_encode(begun) == [*ids, *b"Sure"]
    assert lm.tok_encode("Sure") == target.tokenizer.encode("Sure")
    assert lm.tok_encode("Sure", add_special_tokens=False) == list(b"Sure")


def logprob(target, ids: list[int], count: int) -> float:
    """Of the last `count` ids, one forward for each."""
    total = 0.0
    for place in range(len(ids) - count, len(ids)):
        law = target.model.logits(torch.tensor([ids[:place]]))[0, -1].log_softmax(-1)
        total += float(law[ids[place]])
    return total


def test_likelihoods(target):
    lm = model(target)
    contexts = [chat(lm, f"Who is number {n}?") for n in range(30)]
    context, best = next((context, chr(token)) for context in contexts
                         if (token := greedy(target, lm.tok_encode(context), 1)[0]) < 128)  # one byte of UTF-8
    ids = lm.tok_encode(context)
    pairs = [(context, best), (context, "no way"), ("Where", " to"), ("", "Hi")]
    found = lm.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    plain = target.tokenizer.encode
    wanted = [logprob(target, [*ids, *best.encode()], len(best)), logprob(target, [*ids, *b"no way"], 6),
              logprob(target, plain("Where to"), 3), logprob(target, plain("Hi"), 2)]
    assert [value for value, _ in found] == pytest.approx(wanted, abs=1e-4)
    assert [is_greedy for _, is_greedy in found] == [True, False, False, False]


def test_a_long_text_is_scored_in_windows(target):
    lm, text = model(target), "Once upon a time there was"
    ids = [lm.prefix_token_id, *lm.tok_encode(text)]
    (whole,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (text,)))
    assert whole == pytest.approx(logprob(target, ids, len(ids) - 1), abs=1e-4)
    lm.max_length = 10
    windows = list(lm.windows(text))
    assert [token for _, said in windows for token in said] == ids[1:]
    assert max(len(before) + len(said) for before, said in windows) == 11  # the last token is never fed
    assert len(windows) == 3


class Oracle(HarnessModel):
    """Knows every answer, and gives it when it likes."""

    right = True

    def generate_until(self, requests, disable_tqdm=False):
        return [f"The answer is {one.doc['target']}." if self.right else "Nobody knows." for one in requests]


def test_bundled_items_are_judged(target):
    lm = Oracle(model(target).team, "autoregressive")
    for right in (True, False):
        lm.right = right
        found = evaluate(lm=lm, task_dict=tasks.load("bundled"), apply_chat_template=True, bootstrap_iters=0)
        assert found["results"]["bundled"]["solved,none"] == right
    ours = [json.loads(line)["prompt"] for line in QUALITY.read_text().splitlines()]
    asked = [sample["doc"]["prompt"] for sample in found["samples"]["bundled"]]
    assert sorted(asked) == sorted(ours) and asked != ours


@pytest.mark.parametrize(("answer", "target", "right"), [
    ("so 1,200 in all.", "x\n#### 1200", True), ("#### 18", "9*2=<<9*2=18>>18\n#### 18", True),
    ("18 or 19", "#### 18", False), ("none", "#### 18", False), ("$18.00", "#### 18", True), ("-3", "#### 3", False)])
def test_numbers_are_compared_as_gsm8k_does(answer, target, right):
    assert tasks.same_number(answer, target) == right


@pytest.mark.parametrize(("text", "message"), [
    ("", "holds no question"), ('{"question": "?"}', "line 1 is no JSON object with question and answer"),
    ('{"question": "?", "answer": "1"}\n{"que', "line 2 is no JSON object"), (None, "cannot be read")])
def test_bad_local_data(tmp_path, text, message):
    if text is not None:
        (tmp_path / "math.jsonl").write_text(text)
    with pytest.raises(BenchError, match=message):
        tasks.load(f"gsm8k:{tmp_path / 'math.jsonl'}")


def result(*answers: tuple[str, float]) -> Result:
    return Result([Answer("t", i, value, said) for i, (said, value) in enumerate(answers)], Made([[1, 2]], 1, 4.0))


def test_methods_are_compared_by_pairs():
    base = result(("a", 1), ("b", 0), ("c", 1))
    found = compare({"autoregressive": base, "same": base, "other": result(("a", 1), ("x", 1), ("y", 0))})
    assert {label: entry["differing"] for label, entry in found.items()} == {"autoregressive": 0, "same": 0, "other": 2}
    assert (found["same"]["p"], found["other"]["p"]) == (None, 1.0)
    assert found["same"] == found["autoregressive"]
    assert found["same"]["tokens_per_s"] == 500
    with pytest.raises(RuntimeError, match="odd gave the baseline's very texts"):
        compare({"autoregressive": base, "odd": result(("a", 1), ("b", 1), ("c", 1))})


def test_mcnemar_is_exact():
    """Ten of twenty items differ, nine in favour of one: 2 (C(10, 0) + C(10, 1)) / 2^10."""
    before = [Answer("t", i, float(i < 11), "") for i in range(20)]
    after = [Answer("t", i, float(i in (0, 1) or i >= 19), "") for i in range(20)]
    assert mcnemar(zip(before, after, strict=True)) == pytest.approx(22 / 1024)
    assert mcnemar(zip(before, before, strict=True)) == 1.0


def test_the_command_writes_what_the_report_reads(tmp_path, capsys):
    (tmp_path / "math.jsonl").write_text("\n".join(json.dumps({"question": f"{n} and 1?", "answer": f"#### {n + 1}"})
                                                   for n in range(4)))
    out = tmp_path / "new" / "run"
    flags = ["--target", "tiny", "--methods", DRAFTING, "--device", "cpu", "--dtype", "fp64", "--max-new-tokens", "8"]
    assert main(["quality", *flags, "--data", str(tmp_path / "math.jsonl"), "--limit", "3", "--out", str(out)]) == 0
    found = json.loads((out / "quality.json").read_text())
    assert list(found) == ["autoregressive", DRAFTING]
    assert found[DRAFTING]["score"] == found["autoregressive"]["score"]
    assert {entry["p"] for entry in found.values()} == {None}
    assert {entry["items"] for entry in found.values()} == {3}
    assert len((out / "quality_answers.jsonl").read_text().splitlines()) == 6
    assert f"its score: {DRAFTING}." in capsys.readouterr().out


def test_a_run_is_asked_as_it_was_run_and_all_items(monkeypatch, tmp_path, capsys):
    """Its law and its methods in the loop; how many questions it had, and how long answers were, is another matter."""
    run, other, seen = tmp_path / "run", tmp_path / "other", []
    for directory in (run, other):
        directory.mkdir()
        asked = suite.chosen({"suite": "smoke", "methods": (DRAFTING, "hf_eager"), "device": "cpu", "dtype": "float64",
                              "temperature": 0.5, "limit": 2})
        (directory / "provenance.json").write_text(json.dumps({"settings": asked.published()}))
    monkeypatch.setattr(quality, "measure", lambda *given: seen.append(given) or [(BASELINE, result(("a", 1)))])
    assert main(["quality", str(run)]) == main(["quality", str(run), "--limit", "5", "--max-new-tokens", "9"]) == 0
    (first, _, length), (second, _, longer) = seen
    assert (first.target, first.temperature, first.dtype, first.methods) == ("tiny", 0.5, "float64", (DRAFTING,))
    assert (first.limit, length, second.limit, longer) == (None, None, 5, 9)
    assert json.loads((run / "quality.json").read_text())[BASELINE]["score"] == 1
    assert main(["quality", str(run), "--temperature", "0.9"]) == 2
    assert main(["quality", "--target", "tiny", "--device", "cpu", "--out", str(other)]) == 2
    assert main(["quality", str(run), "--out", str(other)]) == 2
    assert capsys.readouterr().err.count(f"{other} holds a run") == 2
    assert len(seen) == 2


@pytest.mark.parametrize("answered", [0, 1])
def test_ctrl_c_keeps_the_methods_that_were_asked(monkeypatch, tmp_path, capsys, answered):
    def stopped(*given):
        yield from [(BASELINE, result(("a", 1)))] * answered
        raise KeyboardInterrupt

    monkeypatch.setattr(quality, "measure", stopped)
    assert main(["quality", "--target", "tiny", "--device", "cpu", "--out", str(tmp_path)]) == 130
    assert (tmp_path / "quality.json").exists() == bool(answered)
    assert (f"kept is what {BASELINE} gave" in capsys.readouterr().err) == bool(answered)


@pytest.mark.parametrize(("flags", "message"), [
    ("--items gsm8k", "gsm8k needs a local file"), ("--items bundled --data x", "--data is for GSM8K"),
    ("--repeats 2", "--repeats means nothing"), ("--methods hf_eager", "hf_eager decodes outside the loop"),
    ("--part 1/2", "--part means nothing"), ("--data nowhere", "nowhere cannot be read")])
def test_bad_input(capsys, flags, message):
    assert main(["quality", "--target", "tiny", "--device", "cpu", *flags.split()]) == 2
    assert message in capsys.readouterr().err


def test_the_harness_own_model_says_the_same(tmp_path):
    """lm-eval's `hf` on the same folder: greedy, float32, a few bundled items, each token by token."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="lm-eval's hf model needs accelerate")
    folder = checkpoints.save(checkpoints.make("llama"), Path(tmp_path))
    target = zoo.load(str(folder), "cpu", torch.float32)
    settings = suite.RunSettings(target=str(folder), methods=(), device="cpu", dtype="float32")
    ours = HarnessModel(Team(settings, target, 256), "autoregressive")
    theirs = huggingface.HFLM(pretrained=str(folder), dtype="float32", device="cpu")
    answers = []
    for lm in (ours, theirs):
        found = evaluate(lm=lm, task_dict=tasks.load("bundled"), limit=5, apply_chat_template=True, bootstrap_iters=0)
        answers.append([sample["resps"][0][0] for sample in found["samples"]["bundled"]])
    assert answers[0] == answers[1]
    assert len(set(answers[0])) == 5
