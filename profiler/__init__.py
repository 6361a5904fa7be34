"""What each grad mode (`grad`, `no_grad`, `inference_mode`) costs: bytes kept, peak memory, time and kernels.

    from tgrad.profiler import profile
    report = profile("mlp", batch_size=64)
    report.runs, report.saved      # tidy pandas frames
    report.save("out/")            # report.html, summary.md, CSV, plots

The same on the command line: `tgrad profile mlp --batch-size 64 --out out/`.
"""

from __future__ import annotations

from tgrad.profiler.api import profile
from tgrad.profiler.changes import Change
from tgrad.profiler.doctor import Diagnosis, doctor
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.leaks import Leaks, leaks
from tgrad.profiler.recording import record
from tgrad.profiler.records import ALL_MODES, MODES
from tgrad.profiler.report import Report
from tgrad.profiler.whatif import WhatIf, whatif
from tgrad.profiler.workloads import Options, Workload

__all__ = [
    "ALL_MODES",
    "MODES",
    "Change",
    "Diagnosis",
    "Leaks",
    "Options",
    "ProfilerError",
    "Report",
    "WhatIf",
    "Workload",
    "doctor",
    "leaks",
    "profile",
    "record",
    "whatif",
]
