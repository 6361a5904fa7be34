"""Every op that tgrad has under a torch name, on the samples of torch's own op database: `python -m tests.opdb`.

names -> translate -> runner (agreement, scope) -> jobs -> summary: which ops; the samples' values here and there;
running one sample in both, comparing, and arguing what is out of scope; processes; the tables.
"""
