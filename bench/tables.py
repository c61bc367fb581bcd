"""Tables as a reader sees them: the numbers of `bench.stats` with short heads, few digits and a note.

A table knows no format: templates make Markdown, LaTeX and HTML of it, and its frame, with all digits, is the CSV.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from bench import stats
from bench.contents import Found
from bench.layout import BROKEN, NOTHING, Spec, Table, build, fixed, limits, of, percent, significant, tenths, whole
from bench.provenance import SESSIONS
from bench.record import BASELINE, PHASES

PUBLISHED = Path(__file__).with_name("data") / "published.csv"
Leaves = Mapping[tuple[str, ...], Any]  # by path
DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # shown; the CSV has all
POSITIONS = 5  # first divergences shown
QUALITY = ["score", "items", "task", "differing", "p", "tokens_per_s", "tokens_per_step"]  # of quality.json
TASK_HEADS = dict(zip(stats.TASK_NAMES, ("Conv.", "Transl.", "Summ.", "QA", "Math", "RAG"), strict=True))
RESULTS_NOTE = (
    "Speedup: time per token of autoregressive decoding over the method's, on the same prompts. Accepted: tokens per "
    "step, the target's own included. Rows: positions that the target evaluates per step. "
    "#: 1 + number of methods that are apart from this one and faster; none for a BROKEN one. "
)
UNSCORED = "Quality: not measured (python -m bench quality RUN); where the verdict is identical it is the baseline's."
UNASKED = " –: not asked; where the verdict is identical it is the baseline's."
SCORED = "Quality: share of items solved; p: exact McNemar test against autoregressive decoding, where texts differ."
TASKS_NOTE = (
    "Spec-Bench's six tasks: multi-turn conversation, translation, summarization, question answering, mathematical "
    "reasoning, retrieval-augmented generation. –: no prompts, or batches that mix tasks."
)
VERDICTS_NOTE = (
    "Texts that differ from the baseline's under the same noise. First at: tokens before the first difference, "
    "smallest first. z: accepted minus expected draft tokens, in standard deviations; beyond 4 is BROKEN. "
    "identical: every text is the baseline's. numerical ties: texts part only where rounding decides, no more often "
    "than the baseline's own. distribution: verified by rejection, equal in law. lossy: claims neither. reference: "
    "another implementation."
)


def results(name: str, title: str, frame: pd.DataFrame, quality: Found) -> list[Table]:
    """What `stats.main_table` or `stats.lossy_table` found: over all prompts, then task by task."""
    frame = frame.reset_index()
    if quality:
        frame = frame.assign(quality=_of_each(frame.method, quality, "score"), p=_of_each(frame.method, quality, "p"))
    spec: Spec = {
        "Method": of("method"),
        "#": of("rank", lambda rank: "" if pd.isna(rank) else str(rank)),
        "Speedup": of("speedup", fixed),
        "95 %": limits,
        "Accepted": of("accepted", fixed),
        "Rows": of("rows_per_step", tenths),
        "Tokens/s": of("tokens_per_s", significant),
        "Verdict": of("verdict"),
        "Quality (%)": _quality if quality else lambda row: NOTHING,
        "Notes": lambda row: ", ".join(filter(None, (_remark(row.decision), row["flags"]))),
    }
    by_task: Spec = {"Method": lambda row: row.method + BROKEN * (row.verdict == "BROKEN")}
    by_task |= {head: of(task, fixed) for task, head in TASK_HEADS.items()}
    by_task |= {"Overall": of("speedup", fixed), "Accepted": of("accepted", fixed)}
    note = RESULTS_NOTE + (SCORED + UNASKED * bool(frame.quality.isna().any()) if quality else UNSCORED)
    tasks = build(f"{name}_by_task", f"{title}, by task", TASKS_NOTE, frame, by_task)
    return [
        build(name, title, note, frame.drop(columns=list(TASK_HEADS)), spec),
        replace(tasks, frame=frame[["method", *TASK_HEADS, "speedup", "accepted"]]),
    ]


def _remark(decision: str) -> str:
    return "" if decision in {"faster", "slower"} else decision


def _of_each(methods: pd.Series, found: Found, key: str) -> pd.Series:
    """One number of a file of the run, by method; NaN where it has none."""
    return pd.Series([found.get(method, {}).get(key) for method in methods], methods.index, float)


def _quality(row: Any) -> str:
    """Score, and the p-value of the comparison with the baseline where there was one to make."""
    return percent(row.quality) + ("" if pd.isna(row.p) else f" (p={row.p:.2g})")


def quality(found: Found, title: str = "Quality") -> Table:
    """quality.json: scores, and at what speed those very texts were made."""
    frame = pd.DataFrame.from_dict(found, orient="index", columns=QUALITY).rename_axis("method").reset_index()
    frame = frame.astype(dict.fromkeys(("score", "p", "tokens_per_s", "tokens_per_step"), float))
    spec: Spec = {
        "Method": of("method"),
        "Quality (%)": of("score", percent),
        "Items": lambda row: f"{row['items']} of {row.task}",
        "Differing texts": lambda row: NOTHING if row.method == BASELINE else str(row.differing),
        "p": lambda row: NOTHING if pd.isna(row.p) else f"{row.p:.2g}",
        "Tokens/s": of("tokens_per_s", significant),
        "Tokens/step": of("tokens_per_step", fixed),
    }
    return build("quality", title, f"{SCORED} Speed is that of these texts.", frame, spec)


def references(frame: pd.DataFrame) -> Table:
    """Outside implementations of the baseline, and what a method would seem to gain if measured against them."""
    note = (
        "Same weights, same prompts, no drafting. Ratio: tokens/s of autoregressive decoding in this suite over the "
        "framework's: what a method measured against that framework would be credited with before it drafts anything."
    )
    frame = frame[["speedup", "low", "high", "prompts", "tokens_per_s", "flags"]].reset_index()
    frame[["speedup", "low", "high"]] = 1 / frame[["speedup", "high", "low"]]
    spec: Spec = {
        "Framework": of("method"),
        "Tokens/s": of("tokens_per_s", significant),
        "Ratio": of("speedup", fixed),
        "95 %": limits,
        "Prompts": of("prompts"),
        "Notes": of("flags"),
    }
    renamed = frame.rename(columns={"speedup": "ratio"})
    return replace(build("references", "Other implementations of the baseline", note, frame, spec), frame=renamed)


def verdicts(table: pd.DataFrame, rejection: pd.DataFrame, found: Found) -> Table:
    """`stats.divergences` and `stats.rejection_z` beside the verdicts of the run."""
    table = table.join(rejection.z).reset_index()
    table.insert(1, "verdict", [found.get(method, {}).get("verdict", "unchecked") for method in table.method])
    table["detail"] = [found.get(method, {}).get("detail", "") for method in table.method]
    spec: Spec = {
        "Method": of("method"),
        "Verdict": of("verdict"),
        "Diverged": lambda row: f"{row.diverged} of {row.sequences}",
        "Rate (%)": of("rate", percent),
        "First at": of("first_positions", _positions),
    }
    if table.z.notna().any():
        spec["z"] = of("z", fixed)
    spec["Detail"] = of("detail")
    return build("verdicts", "Verdicts", VERDICTS_NOTE, table, spec)


def _positions(places: list[int]) -> str:
    shown = sorted(places)
    return ", ".join(map(str, shown[:POSITIONS])) + (" …" if len(shown) > POSITIONS else "")


def phases(frame: pd.DataFrame) -> Table:
    """`stats.phase_table`: mean ms per step and phase."""
    spec: Spec = {"Method": of("method")} | {phase: of(phase, significant) for phase in PHASES}
    spec["Step"] = of("step_ms", significant)
    note = "Mean over the steps that contributed a token; the steps of a batch count once."
    return build("phases", "Milliseconds per step", note, frame.reset_index(), spec)


def cost(frame: pd.DataFrame, lengths: pd.DataFrame, measured: Found) -> Table:
    """What a speedup was bought with: rows, closure of the clock; memory and energy where they were measured."""
    table = frame[["step_ms", "closure", "outside", "flagged"]].join(lengths[["rows_per_step", "micro"]])
    table["rows_per_token"] = table.rows_per_step / table.micro
    for key in ("peak_memory_mib", "own_memory_mib", "energy_mj_per_token", "roofline_share"):
        table[key] = _of_each(table.index.to_series(), measured, key)
    spec: Spec = {
        "Method": of("method"),
        "Rows/step": of("rows_per_step", tenths),
        "Rows/token": of("rows_per_token", tenths),
        "Step (ms)": of("step_ms", significant),
        "Closure": lambda row: fixed(row.closure, 3) + (" (off)" if row.flagged else ""),
    }
    note = "Closure: sum of all phases over the host's time around the loop; outside 0.97 to 1.03 it is off. "
    if measured:
        spec["Peak (MiB)"] = of("peak_memory_mib", whole)
        spec["Own (MiB)"] = of("own_memory_mib", whole)
        spec["mJ/token"] = of("energy_mj_per_token", tenths)
        spec["Roofline"] = of("roofline_share", fixed)
        note += (
            "Own: what the method adds to the target's memory. mJ/token: of the whole card, prefill included. "
            "Roofline: time to read weights and cache once, over the step's. These four are from a pass of their own."
        )
    else:
        note += "Memory and energy were not measured: they need a pass of their own (python -m bench cost RUN)."
    return build("cost", "Rows, clock, memory, energy", note, table.drop(columns="micro").reset_index(), spec)


def latency(frame: pd.DataFrame) -> Table:
    """`stats.latency`: percentiles of step, token and first-token latency."""

    def three(name: str) -> Callable[[Any], str]:
        return lambda row: " / ".join(significant(row[f"{name}_p{level}"]) for level in (50, 95, 99))

    spec: Spec = {
        "Method": of("method"),
        "Step": three("step_ms"),
        "Per token": three("token_ms"),
        "First token": three("ttft_ms"),
        "TPOT": of("tpot_ms", significant),
    }
    note = "Milliseconds at P50 / P95 / P99. First token: prefill and first step. TPOT: decode time / tokens."
    return build("latency", "Latency (ms)", note, frame.reset_index(), spec)


def acceptance(rates: pd.DataFrame) -> list[Table]:
    """`stats.acceptance_by_depth`, conditional and joint: methods down, chosen depths across."""
    notes = {
        "conditional": "Accepted at a depth, in % of the steps that offered it and accepted the depth before.",
        "joint": "Accepted at a depth, in % of all steps that offered it.",
    }
    out = []
    for kind, note in notes.items():
        wide = rates.pivot(index="method", columns="depth", values=kind).loc[list(dict.fromkeys(rates.method))]
        spec: Spec = {"Method": of("method")}
        spec |= {str(depth): of(depth, partial(percent, digits=0)) for depth in DEPTHS if depth in wide.columns}
        shown = build(f"acceptance_{kind}", f"Acceptance by depth, {kind} (%)", note, wide.reset_index(), spec)
        out.append(replace(shown, frame=rates[["method", "depth", "steps", "reached", kind]]))
    return out


def peers(lengths: pd.DataFrame) -> Table:
    """Acceptance length by method (index) in each definition (column)."""
    spec: Spec = {"Method": of("method")} | {name: of(name, fixed) for name in lengths.columns}
    note = "The same records as other benchmarks would count them. Compare a published length with its own column only."
    return build("peers", "Acceptance length, as others count", note, lengths.rename_axis("method").reset_index(), spec)


def others(frame: pd.DataFrame, baseline: str) -> Table:
    """What the files of other benchmarks say (`bench.peers.table`)."""
    spec: Spec = {"Method": of("method")} | {head: of(task, fixed) for task, head in TASK_HEADS.items()}
    spec |= {"Overall": of("speedup", fixed), "95 %": limits, "Accepted": of("accepted", fixed),
             "Tokens/s": of("tokens_per_s", significant), "Prompts": of("prompts")}  # fmt: skip
    note = f"Time per token of {baseline} over the method's, on common questions. Tokens as each file counts them."
    return build("others", "Results of other benchmarks", note, frame.reset_index(), spec)


def pairs(table: pd.DataFrame, floor: stats.Interval | None) -> Table:
    """`stats.ranking`, a square of ratios; ≈ marks pairs that cannot be told apart."""
    order = pd.DataFrame({"method": table.index, "label": [f"{n}. {name}" for n, name in enumerate(table.index, 1)]})
    spec: Spec = {"Method": of("label")}
    for number, other in enumerate(table.columns, 1):
        spec[str(number)] = of("method", partial(_ratio, table, floor, other))
    note = (
        "Speed of the row's method over the numbered one's. ≈: not apart, as the 95 % interval covers 1 or the ratio "
        "is no farther from 1 than the noise floor."
    )
    found = [(a, b, table.loc[a, b]) for a in table.index for b in table.columns if a != b]
    rows = [(a, b, ratio.estimate, ratio.low, ratio.high, ratio.prompts) for a, b, ratio in found]
    numbers = pd.DataFrame(rows, columns=["method", "over", "ratio", "low", "high", "prompts"])
    return replace(build("pairs", "Pair by pair", note, order, spec), frame=numbers)


def _ratio(table: pd.DataFrame, floor: stats.Interval | None, other: str, method: str) -> str:
    found = table.loc[method, other]
    alike = stats.decision(found, floor) == "no difference"
    return "" if method == other else ("≈" if alike else "") + fixed(found.estimate)


def published() -> Table:
    """What others report, each row with its setting and source."""
    heads = ("Method", "Speedup", "Accepted", "Model", "Setting", "Source")
    note = "Not measured here: other models, other hardware, other baselines. Such ratios do not carry over."
    frame = pd.read_csv(PUBLISHED, dtype=str)
    table = build("published", "Published speedups", note, frame, {head: of(head.lower()) for head in heads})
    return replace(table, measured=False)


def environment(provenance: Mapping[str, Any]) -> Table:
    """What the run recorded of code, machine and settings, one line each; of parts and later sessions what differs."""
    items = [(" · ".join(path), _shown(value)) for path, value in _told(provenance, {})]
    frame = pd.DataFrame(items, columns=["item", "value"], dtype=str)
    note = "Recorded with the run. Hashes are shortened."
    note += " Parts: what was not alike in all of them." if "parts" in provenance else ""
    note += " Resumed: what was not as in the first session." if any("resumed" in item for item, _ in items) else ""
    table = build("environment", "Provenance", note, frame, {"Item": of("item"), "Value": of("value")})
    return replace(table, measured=False)


def _told(node: Mapping[str, Any], known: Leaves) -> list[tuple[tuple[str, ...], Any]]:
    """Its leaves that are not known already; then those of its parts and later sessions, to which they are."""
    plain = {name: value for name, value in node.items() if name not in SESSIONS}
    own = dict(_leaves(plain, ()))
    found = [(path, value) for path, value in own.items() if path not in known or known[path] != value]
    for name in SESSIONS:
        for number, session in enumerate(node.get(name, ()), 1):
            found += [((name, str(number), *path), value) for path, value in _told(session, {**known, **own})]
    return found


def _leaves(node: Mapping[str, Any], path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    found = []
    for key, value in node.items():
        found += _leaves(value, (*path, key)) if isinstance(value, Mapping) else [((*path, key), value)]
    return found


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else NOTHING if value is None else str(value)
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,}\b", r"\1…", text)
