"""A report's sections: which tables and figures stand under which heading, and the sentences that the numbers allow."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from bench import figures, stats, tables
from bench.canvas import Picture
from bench.contents import Run
from bench.layout import Table, fixed, in_words, limits, significant
from bench.peers import PEERS, in_peer_definition
from bench.quantities import SEQUENCE
from bench.record import BASELINE, TWIN

FLAGS = {  # as `stats.main_table` spells them -> what they mean
    "few": "few: fewer than 20 prompts, so the interval is narrower than it claims.",
    "impossible": "impossible: faster than tokens per step allow if a step costs what the baseline's does.",
    "closure": "closure: the phases do not add up to the host's time around the loop.",
    "A/A apart": "A/A apart: the baseline differs from its own copy, so something else moves the times.",
}
REFERENCES = (
    "A speedup is as large as its baseline is slow. These are other implementations of autoregressive decoding, in a "
    "table of their own and never the denominator."
)
LOSSY = "These methods change the text, so they are ranked among themselves only."


@dataclass(frozen=True)
class Section:
    """A heading with sentences, tables and figures under it; `key` names it within a page."""

    key: str
    title: str
    text: list[str]
    tables: list[Table]
    pictures: list[Picture]


@dataclass(frozen=True)
class Report:
    """All that a page shows, in order. `mark` is what must stand beside every number, or empty."""

    title: str
    mark: str
    facts: str
    sections: list[Section]


@dataclass(frozen=True)
class Findings:
    """Tables of `stats` that several sections share; `methods` are those that decode in the loop, best first."""

    main: pd.DataFrame
    lossy: pd.DataFrame
    references: pd.DataFrame

    @property
    def methods(self) -> list[str]:
        """Lossless methods, then lossy ones."""
        return [*self.main.index, *self.lossy.index]

    @property
    def drafting(self) -> list[str]:
        """The same without the baseline and its copy."""
        return [method for method in self.methods if method not in {BASELINE, TWIN}]

    @property
    def both(self) -> pd.DataFrame:
        """Lossless and lossy methods in one frame, told apart by its column `lossy`."""
        return pd.concat([self.main.assign(lossy=False), self.lossy.assign(lossy=True)])


def find(run: Run) -> Findings:
    """The main, lossy and reference tables. BenchError where the baseline was not measured."""
    parts = (stats.main_table, stats.lossy_table, stats.reference_table)
    return Findings(*(part(run.records, run.verdicts) for part in parts))


def compose(run: Run) -> Report:
    """The whole report of a run."""
    found = find(run)
    makers = (results, lossy, references, texts, costs, acceptance, pairwise, elsewhere, environment)
    sections = [maker(run, found) for maker in makers]
    filled = [section for section in sections if section.tables or section.pictures]
    return Report(f"PTP-Bench: {run.settings['target']}", run.mark, facts(run), filled)


def facts(run: Run) -> str:
    """The setting in one line."""
    records, settings = run.records, run.settings
    law = in_words(settings["temperature"], settings["top_k"], settings["top_p"])
    return " · ".join([
        settings["target"], law, settings["dtype"], settings["device"], f"clock: {settings['clock']}",
        f"batch {records.batch.max()}", _counted(records.question_id.nunique(), "question"),
        _counted(records["repeat"].nunique(), "repeat"), f"at most {settings['max_new_tokens']} new tokens",
    ])  # fmt: skip


def _counted(number: int, name: str) -> str:
    return f"{number} {name}" + "s" * (number != 1)


def results(run: Run, found: Findings) -> Section:
    """The main table."""
    best = [] if run.mark else _best(found.main)  # made-up weights accept what they accept by accident
    text = [*best, _floor(found.main), *_broken(found.both), *_meanings(found.both["flags"]), *_cards(run.records)]
    shown = tables.results("main", "Speedup", found.main, run.quality)
    return Section("results", "Results", text, shown, _marked(run, figures.speedup(found.both, _floor_of(run))))


def _floor_of(run: Run) -> stats.Interval | None:
    return stats.noise_floor(run.records)


def _best(main: pd.DataFrame) -> list[str]:
    """The fastest methods whose text or law is known to be kept; none where no method is faster."""
    sound = main[(main.decision == "faster") & ~main.verdict.isin(["BROKEN", "unchecked"])]
    sound = sound[~sound["flags"].str.contains("impossible")]
    if sound.empty:
        return []
    best = sound.iloc[0]
    others = [method for method in sound.index[1:] if sound["rank"][method] == best["rank"]]
    tied = f" Not apart from it: {', '.join(others)}." if others else ""
    gain = f"a speedup of {fixed(best.speedup)} {limits(best)} and {fixed(best.accepted)} tokens per step"
    return [f"Fastest: {best.name} with {gain}.{tied}"]


def _floor(main: pd.DataFrame) -> str:
    """The A/A sentence."""
    if TWIN not in main.index:
        return "The baseline was not measured against its own copy (A/A), so the noise floor is unknown."
    twin = main.loc[TWIN]
    return (
        f"Noise floor: the baseline against its own copy is {twin.speedup:.3f} [{twin.low:.3f}, {twin.high:.3f}] over "
        f"{twin.prompts} prompts. A speedup that is no farther from 1, either way, or whose interval covers 1, is no "
        "difference."
    )


def _broken(both: pd.DataFrame) -> list[str]:
    broken = both.index[both.verdict == "BROKEN"]
    return [f"BROKEN: {', '.join(broken)}. The text is wrong, so the speed means nothing."] if len(broken) else []


def _meanings(flags: pd.Series) -> list[str]:
    raised = " ".join(flags)
    return [meaning for flag, meaning in FLAGS.items() if flag in raised]


def _cards(records: pd.DataFrame) -> list[str]:
    """What a run says that was measured, in parts or resumed, on several cards of the same model."""
    card = records.settings.map(lambda settings: settings.get("card", ""))
    split = card.groupby([records[name] for name in SEQUENCE]).nunique() > 1
    if card.nunique() < 2:
        return []
    same = f"{split.sum()} of {len(split)} turns were not measured" if split.any() else "every turn was measured"
    return [f"Measured on {card.nunique()} cards, which differ by a few percent; {same} by all methods on the same "
            "one."]  # fmt: skip


def lossy(run: Run, found: Findings) -> Section:
    """Methods that change the text."""
    shown = tables.results("lossy", "Speedup, lossy", found.lossy, run.quality) if len(found.lossy) else []
    return Section("lossy", "Lossy methods", [LOSSY], shown, [])


def references(run: Run, found: Findings) -> Section:
    """How much of a published speedup is the framework."""
    here = found.main.tokens_per_s[BASELINE]
    text = [f"Autoregressive decoding in this suite: {significant(here)} tokens/s.", REFERENCES]
    shown = [tables.references(found.references)] if len(found.references) else []
    return Section("references", "How much of a speedup is the framework?", text, shown, [])


def texts(run: Run, found: Findings) -> Section:
    """Verdicts and quality."""
    divergences = stats.divergences(run.records)
    order = [method for method in [*found.methods, *found.references.index] if method in divergences.index]
    shown = [tables.verdicts(divergences.loc[order], stats.rejection_z(run.records), run.verdicts)] if order else []
    shown += [tables.quality(run.quality)] if run.quality else []
    text = [] if run.verdicts else ["The run left no verdicts, so nothing here has been checked."]
    return Section("texts", "Is the text unchanged?", [*text, *_strayed(run)], shown, [])


def _strayed(run: Run) -> list[str]:
    """Methods that kept every text of the run, but not of the items: their score is no longer bound to be equal."""
    kept = [method for method, found in run.verdicts.items() if found.get("verdict") == "identical"]
    astray = [method for method in kept if run.quality.get(method, {}).get("differing")]
    return [f"Identical on the run's prompts but not on the items of Quality: {', '.join(astray)}."] if astray else []


def costs(run: Run, found: Findings) -> Section:
    """Where the time goes, and what a speedup was bought with."""
    phases = stats.phase_table(run.records).loc[found.methods]
    lengths = stats.acceptance(run.records).loc[found.methods]
    shown = [
        tables.phases(phases),
        tables.cost(phases, lengths, run.cost),
        tables.latency(stats.latency(run.records).loc[found.methods]),
    ]
    return Section("costs", "Cost", [], shown, _marked(run, figures.phases(phases), figures.budget(found.both)))


def acceptance(run: Run, found: Findings) -> Section:
    """How deep drafts are accepted."""
    rates = stats.acceptance_by_depth(run.records)
    rates = rates[rates.method.isin(found.drafting)]
    rates = rates.sort_values("method", key=lambda names: names.map(found.drafting.index), kind="stable")
    shown = tables.acceptance(rates) if len(rates) else []
    histogram = stats.kept_histogram(run.records)[found.drafting]
    drawn = _marked(run, figures.acceptance(rates), figures.kept(histogram))
    return Section("acceptance", "Acceptance", [], [*shown, *_peers(run, found)], drawn)


def _peers(run: Run, found: Findings) -> list[Table]:
    """Acceptance lengths in the definitions of other benchmarks, where there is something to count."""
    if not found.drafting:
        return []
    lengths = pd.DataFrame({peer: in_peer_definition(run.records, peer) for peer in PEERS})
    lengths.insert(0, "Here", stats.acceptance(run.records).micro)
    return [tables.peers(lengths.loc[found.drafting])]


def pairwise(run: Run, found: Findings) -> Section:
    """Every method that has a rank against every other."""
    ranking = stats.ranking(run.records, [*found.main.index[found.main["rank"].notna()]])
    shown = [tables.pairs(ranking, _floor_of(run))] if len(ranking) > 1 else []
    return Section("ranking", "Ranking", [], shown, [])


def elsewhere(run: Run, found: Findings) -> Section:
    """Published rows."""
    return Section("published", "Numbers published by others", [], [tables.published()], [])


def environment(run: Run, found: Findings) -> Section:
    """Provenance."""
    shown = [tables.environment(run.provenance)] if run.provenance else []
    return Section("environment", "Environment", [], shown, [])


def _marked(run: Run, *pictures: Picture | None) -> list[Picture]:
    """The pictures that there are, with the mark that the run's weights demand."""
    return [replace(picture, mark=run.mark) for picture in pictures if picture is not None]
