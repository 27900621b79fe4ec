"""RUN folders read again: their tables, totals over shards, limits, checks.

In: folders that `xentrs.corpus` wrote. Out: tables in constant memory (open_run.py), totals of several RUNs
(merging.py), increases over a baseline (paired.py), verdicts (criteria.py), findings (verification.py, rescore.py).
"""
