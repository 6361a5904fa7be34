"""One measurement, and the file of them that a section's process appends to while its parent reads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Row:
    """One contender in one case, timed in one way. What it does not have is None, or empty.

    Attributes:
        kind: "device", "wall" or "graph" (see the package); "saved", "peak", "ledger" or "host": bytes; "smoke": run,
            not timed.
        flops, nbytes: the least that the case has to do, and to move through memory.
        error: ||out - ref|| / ||ref|| against float64, the greatest of the results'.
        bytes: of the CUDA allocator, above what was allocated before; "ledger", "host": as tgrad's ledger counts them.
        goal: its name in goals.py.
        note: what else is to be known; of a contender that failed, the first line of its error.
        rate, unit, percent: of the least work; percent of the ceiling in the same run. Filled in by results.py, as are
        ratio: to PyTorch eager in the same case and kind, of times or bytes; and
        wanted, measured, met: the goal's quantity and bound, what was found, whether that is enough.
    """

    section: str
    case: str
    dtype: str = ""
    shape: str = ""
    contender: str = ""
    kind: str = ""
    ms: float | None = None
    p20: float | None = None
    p80: float | None = None
    samples: int | None = None
    flops: float | None = None
    nbytes: float | None = None
    error: float | None = None
    bytes: int | None = None
    goal: str = ""
    note: str = ""
    rate: float | None = None
    unit: str = ""
    percent: float | None = None
    ratio: float | None = None
    wanted: str = ""
    measured: float | None = None
    met: bool | None = None

    @property
    def key(self) -> tuple[str, ...]:
        return self.section, self.case, self.dtype, self.shape, self.kind


class Journal:
    """Lines of JSON: {"row": ...}, {"begin": case}, {"facts": ...}. What a killed process wrote is still there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **line: Any) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")

    def add(self, row: Row) -> None:
        self.write(row=dataclasses.asdict(row))

    def read(self, what: str) -> Iterator[Any]:
        if not self.path.exists():
            return
        for line in self.path.read_text().splitlines():
            try:
                found = json.loads(line)
            except json.JSONDecodeError:  # the process was killed while it wrote
                continue
            if what in found:
                yield found[what]

    def rows(self) -> list[Row]:
        return [Row(**fields) for fields in self.read("row")]
