"""A report's folder, read back: its CSV files as frames, checked before anything is made of them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tgrad.profiler.errors import ProfilerError, one_line
from tgrad.profiler.records import EventRow, RunRecord, SampleRecord, SavedRow, columns

RECORDS = {"runs": RunRecord, "samples": SampleRecord, "saved": SavedRow, "events": EventRow}
AGAIN = "write the report again with this version: tgrad profile ... --out {} --force"


@dataclass(frozen=True)
class Loaded:
    """The frames of a report in a folder, and its environment."""

    path: Path
    runs: pd.DataFrame
    samples: pd.DataFrame
    saved: pd.DataFrame
    events: pd.DataFrame
    environment: dict[str, Any]


def load(path: str | os.PathLike) -> Loaded:
    """Read the report in folder `path`.

    Raises:
        ProfilerError: there is none, a file is missing or cannot be read, or it lacks columns; names the file.
    """
    folder = Path(path)
    if not folder.exists():
        raise ProfilerError(f"there is no folder {folder}; write a report with: tgrad profile ... --out {folder}")
    if not folder.is_dir():
        raise ProfilerError(f"{folder} is a file, and a report is a folder; name the folder that --out wrote")
    frames = {name: _frame(folder, name, record) for name, record in RECORDS.items()}
    return Loaded(folder, **frames, environment=_environment(folder))


def _frame(folder: Path, name: str, record: type) -> pd.DataFrame:
    path = folder / f"{name}.csv"
    if not path.is_file():
        raise ProfilerError(f"{path} is missing, so {folder} is not a whole report; {AGAIN.format(folder)}")
    text = [f for f, kind in record.__annotations__.items() if kind == "str"]
    try:
        frame = pd.read_csv(path, dtype=dict.fromkeys(text, str), keep_default_na=False, na_values={
            f: ["", "nan", "NaN"] for f in columns(record) if f not in text
        })  # fmt: skip
    except (OSError, ValueError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ProfilerError(f"{path} cannot be read ({one_line(error)}); {AGAIN.format(folder)}") from None
    missing = [c for c in columns(record) if c not in frame.columns]
    if missing:
        raise ProfilerError(
            f"{path} has no column {', '.join(missing[:3])}: it is of another version of tgrad; {AGAIN.format(folder)}"
        )
    for column, kind in record.__annotations__.items():
        if kind in ("int", "float") and not pd.api.types.is_numeric_dtype(frame[column]) and len(frame):
            raise ProfilerError(f"{path}: column {column} holds something else than numbers; {AGAIN.format(folder)}")
        if kind == "int" and len(frame) and frame[column].isna().any():
            raise ProfilerError(f"{path}: column {column} has an empty cell; {AGAIN.format(folder)}")
    return frame


def _environment(folder: Path) -> dict[str, Any]:
    path = folder / "env.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ProfilerError(f"{path} is missing, so {folder} is not a whole report; {AGAIN.format(folder)}") from None
    except (OSError, ValueError) as error:
        raise ProfilerError(f"{path} cannot be read ({one_line(error)}); {AGAIN.format(folder)}") from None
    if not isinstance(found, dict):
        raise ProfilerError(f"{path} is not a JSON object; {AGAIN.format(folder)}")
    return found
