"""What a run directory holds, read into memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bench.errors import BenchError
from bench.record import frame, read

COST_ONLY = "random weights: cost only"
Found = Mapping[str, Mapping[str, Any]]  # by method: what a file of the run says about it


@dataclass(frozen=True)
class Run:
    """A run directory in memory. Every mapping is empty where its file is missing.

    records     `bench.record.frame`
    provenance  provenance.json
    verdicts    verdicts.json: {method: {"verdict", "detail", ...}}
    quality     quality.json: {method: {"score": share of items solved, "p": McNemar against the baseline or null, ...}}
    cost        cost.json: {method: {"peak_memory_mib", "own_memory_mib", "energy_mj_per_token", "roofline_share"}},
                numbers or null
    """

    records: pd.DataFrame
    provenance: Mapping[str, Any]
    verdicts: Found
    quality: Found
    cost: Found

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the first record; of what differs between methods (options, lossless) they say nothing."""
        return self.records.settings.iloc[0]

    @property
    def mark(self) -> str:
        """What must stand beside every number of a target with made-up weights; empty for a real one."""
        target = self.settings["target"]
        return COST_ONLY if target.startswith("shape:") or target.split(":")[0] == "tiny" else ""


def load(directory: str | Path) -> Run:
    """Read a run directory. BenchError for one without records, and for a file that is damaged."""
    directory = Path(directory)
    records = frame(read(directory))
    names = ("provenance", "verdicts", "quality", "cost")
    return Run(records, *(read_object(directory / f"{name}.json") for name in names))


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; an empty one where there is no file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} cannot be read ({error}): repair or delete it") from error
    if not isinstance(found, dict):
        raise BenchError(f"{path} holds no JSON object: repair or delete it")
    return found
