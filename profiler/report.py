"""The report: records with their frames, and the one writer of its files."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tgrad.profiler import output
from tgrad.profiler.measure import Records

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Report:
    """What `profile` found.

    Attributes:
        records: all that was recorded.
        environment: where, as in env.json.
        about: workload -> a sentence on what it is.

    The frames `runs`, `samples`, `saved`, `events` and `summary` are made when first asked for.
    """

    records: Records
    environment: dict[str, Any]
    about: dict[str, str] = field(default_factory=dict)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row a (workload, mode): `records.RunRecord`."""
        from tgrad.profiler.aggregate import runs_frame

        return runs_frame(self.records.runs)

    @cached_property
    def samples(self) -> pd.DataFrame:
        """A row a timed call: `records.SampleRecord`."""
        from tgrad.profiler.aggregate import samples_frame

        return samples_frame(self.records.samples)

    @cached_property
    def saved(self) -> pd.DataFrame:
        """A row a saved tensor: `records.SavedRow`."""
        from tgrad.profiler.aggregate import saved_frame

        return saved_frame(self.records.saved)

    @cached_property
    def events(self) -> pd.DataFrame:
        """A row an allocation or free: `records.EventRow`."""
        from tgrad.profiler.aggregate import events_frame

        return events_frame(self.records.events)

    @cached_property
    def twins(self) -> pd.DataFrame:
        """A row a workload that was measured in PyTorch as well: `torch_twin.TwinRecord`. Without any, no columns."""
        import pandas as pd

        return pd.DataFrame([vars(t) for t in self.records.twins])

    @cached_property
    def twin_saved(self) -> pd.DataFrame:
        """A row a tensor that PyTorch saved, as in `saved`."""
        from tgrad.profiler.aggregate import saved_frame

        return saved_frame(self.records.twin_saved)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """The first columns to look at: `aggregate.SUMMARY`."""
        from tgrad.profiler.aggregate import summary

        return summary(self.runs)

    @cached_property
    def mode_changes(self) -> pd.DataFrame:
        """Each mode as a difference from another: `aggregate.mode_changes`."""
        from tgrad.profiler.aggregate import mode_changes

        return mode_changes(self.runs, self.saved)

    def idle(self, workload: str, mode: str = "grad") -> pd.DataFrame:
        """Memory that waits for backward, and by how much the peak falls without it: `lifetimes.idle`."""
        from tgrad.profiler.lifetimes import idle

        return idle(self.saved, self.events, workload, mode)

    def at_peak(self, workload: str, mode: str = "grad") -> pd.DataFrame:
        """What is live when the most is: `lifetimes.at_peak`."""
        from tgrad.profiler.lifetimes import at_peak

        return at_peak(self.saved, self.events, workload, mode)

    @property
    def workloads(self) -> list[str]:
        """Names, in the order they ran."""
        return list(
            dict.fromkeys([*(r.workload for r in self.records.runs), *(t.workload for t in self.records.twins)])
        )

    def sentences(self) -> dict[str, str]:
        """Workload -> what its runs say, in words."""
        from tgrad.profiler.words import sentence, twin_sentence

        found = {w: sentence(self.runs[self.runs["workload"] == w]) for w in self.workloads if w in self._ran}
        return found | {
            t.workload: f"{found.get(t.workload, '')} {twin_sentence(t)}".strip() for t in self.records.twins
        }

    @property
    def _ran(self) -> set[str]:
        return {r.workload for r in self.records.runs}

    def save(self, out: str | os.PathLike, force: bool = False) -> Path:
        """Write the folder `out`: report.html, summary.md, CSV files, plots, env.json. It appears whole or not at all.

        Args:
            force: replace a report that is there. A folder with anything else in it is never replaced.

        Returns:
            The folder.

        Raises:
            ProfilerError: the folder cannot be written, or may not be replaced.
        """
        from tgrad.profiler import html, plots

        with output.folder(out, force) as folder:
            for name in ("runs", "samples", "saved", "events"):
                getattr(self, name).to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
            if self.records.twins:
                for name in ("twins", "twin_saved"):
                    getattr(self, name).to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
            (folder / "env.json").write_text(json.dumps(self.environment, indent=2) + "\n", encoding="utf-8")
            figures: dict[str, list[tuple[str, str, str]]] = {}
            (folder / "plots").mkdir()
            for workload in self.workloads:
                figures[workload] = []
                if workload not in self._ran:
                    continue
                for stem, says, fig in plots.draw(self.runs, self.saved, self.events, workload):
                    (folder / "plots" / f"{stem}.png").write_bytes(plots.png(fig))
                    figures[workload].append((stem, says, plots.svg(fig, f"{workload}: {says}")))
            (folder / "summary.md").write_text(html.markdown(self, figures), encoding="utf-8")
            (folder / "report.html").write_text(html.page(self, figures), encoding="utf-8")
        return Path(out).expanduser().resolve()

    def _repr_html_(self) -> str:
        """A notebook shows the tables and the words, without the plots."""
        from tgrad.profiler import html

        return html.fragment(self)
