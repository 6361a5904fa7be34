"""tgrad beside PyTorch and others on one GPU: `python3 -m tests.benchmarks.gpu --out DIR`.

Method. All contenders of a case run in one process on the same random data, in turns; a section of cases has a process
and a time limit of its own (runner.py), so that a crash or a hang costs the rest of one section at most. Three kinds of
time (timing.py), each as median with the 20th and 80th percentile:

    device   between CUDA events, after a write of 256 MB that empties the L2 cache and gives the host a head start
    wall     host time of many calls and one synchronisation, per call
    graph    replays of a CUDA graph that holds the call over several buffers in rotation, larger than the cache

Beside each time stands the error ||out - ref|| / ||ref|| against float64. The ceilings (copy, cuBLAS) are measured in
the same run. A ratio is a time over that of PyTorch eager, of the same kind and case: below 1 is faster.

    cli.py        the command             runner.py   sections in processes    worker.py   one section
    bench.py      cases and contenders    timing.py   the three kinds          data.py     one memory, two libraries
    goals.py      what is to be reached   results.py  rates, ratios, goals     output.py   CSV, NOTES.md, table
    plots.py      the plots               sections.py all sections, in order   *_cases.py  the cases by theme
"""
