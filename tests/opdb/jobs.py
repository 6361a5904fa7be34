"""The entries of the database shared out among processes."""

from __future__ import annotations

import functools
import multiprocessing
from typing import NamedTuple

import torch

from tests.opdb import names, runner


class Job(NamedTuple):
    """The entry at a place in the database (OpInfos do not travel between processes), and how much of it to run."""

    at: int
    dtypes: list[torch.dtype]
    quick: bool


@functools.cache
def entries() -> dict[int, names.Entry]:
    """What tgrad has, by place in the database."""
    return {i: e for i, info in enumerate(names.database()) if (e := names.entry(info)) is not None}


def run_one(job: Job) -> runner.Outcome:
    torch.set_num_threads(1)
    return runner.run(entries()[job.at], job.dtypes, limit=1 if job.quick else None, errors=not job.quick)


def run_all(jobs: list[Job], processes: int) -> list[runner.Outcome]:
    """The outcomes, by name."""
    if min(processes, len(jobs)) > 1:
        with multiprocessing.get_context("spawn").Pool(min(processes, len(jobs))) as pool:
            outcomes = pool.map(run_one, jobs, chunksize=1)
    else:
        outcomes = [run_one(job) for job in jobs]
    return sorted(outcomes, key=lambda o: o.full_name)
