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

    from tgrad.profiler.scale import Scale


@dataclass
class Report:
    """What `profile` found.

    Attributes:
        records: all that was recorded.
        environment: where, as in env.json.
        about: workload -> a sentence on what it is.
        scales: the scale laws that were measured beside it.
        extra: further frames, by the name of their file.

    The frames `runs`, `samples`, `saved`, `events` and `summary` are made when first asked for.
    """

    records: Records
    environment: dict[str, Any]
    about: dict[str, str] = field(default_factory=dict)
    scales: list[Scale] = field(default_factory=list)
    extra: dict[str, pd.DataFrame] = field(default_factory=dict)

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

    def frames(self) -> dict[str, pd.DataFrame]:
        """All frames that a report's folder holds, by the name of their file."""
        found = {name: getattr(self, name) for name in ("runs", "samples", "saved", "events")}
        if self.records.twins:
            found |= {"twins": self.twins, "twin_saved": self.twin_saved}
        if self.scales:
            import pandas as pd

            found["scale"] = pd.concat([s.frame for s in self.scales], ignore_index=True)
            found["laws"] = pd.concat([s.law_frame for s in self.scales], ignore_index=True)
        return found | self.extra

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
        for t in self.records.twins:
            found[t.workload] = f"{found.get(t.workload, '')} {twin_sentence(t)}".strip()
        return {w: " ".join([text, *self.records.notes.get(w, ())]) for w, text in found.items()}

    @property
    def _ran(self) -> set[str]:
        return {r.workload for r in self.records.runs}

    def save(self, out: str | os.PathLike, force: bool = False) -> Path:
        """Write the folder `out`: report.html, summary.md, CSV and Parquet files, plots, env.json.

        It appears whole or not at all.

        Args:
            force: replace a report that is there. A folder with anything else in it is never replaced.

        Returns:
            The folder.

        Raises:
            ProfilerError: the folder cannot be written, or may not be replaced.
        """
        from tgrad.profiler import datafiles, figures, html, markdown, plots

        with output.folder(out, force) as folder:
            datafiles.write(folder, self.frames())
            (folder / "env.json").write_text(json.dumps(self.environment, indent=2) + "\n", encoding="utf-8")
            drawn: dict[str, list[tuple[str, str, str]]] = {}
            (folder / "plots").mkdir()
            for workload in self.workloads:
                drawn[workload] = []
                for stem, says, fig in figures.draw(self, workload):
                    text = plots.svg(fig, f"{workload}: {says}")
                    (folder / "plots" / f"{stem}.png").write_bytes(plots.png(fig))
                    (folder / "plots" / f"{stem}.svg").write_text(plots.for_file(text), encoding="utf-8")
                    drawn[workload].append((stem, says, plots.for_page(text)))
            (folder / "summary.md").write_text(markdown.page(self, drawn), encoding="utf-8")
            (folder / "report.html").write_text(html.page(self, drawn), encoding="utf-8")
        return Path(out).expanduser().resolve()

    def _repr_html_(self) -> str:
        """A notebook shows the tables and the words, without the plots."""
        from tgrad.profiler import html

        return html.fragment(self)
