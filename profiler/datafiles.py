"""A report's frames as files: CSV always, Parquet beside it where pyarrow is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

NO_PARQUET = "No Parquet files: pyarrow is not installed (pip install pyarrow). The CSV files hold the same."


def has_parquet() -> bool:
    """Whether Parquet files can be written here."""
    return importlib.util.find_spec("pyarrow") is not None


def write(folder: Path, frames: dict[str, pd.DataFrame]) -> None:
    """NAME.csv of each frame, and NAME.parquet where pyarrow is installed; rows and columns as they are, unscaled."""
    parquet = has_parquet()
    for name, frame in frames.items():
        frame.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
        if parquet:
            frame.to_parquet(folder / f"{name}.parquet", engine="pyarrow", index=False)
