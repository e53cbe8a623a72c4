"""What recording costs, beside git subprocesses and SQLite: ``python -m benchmarks``.

Every number is taken in one run on one machine, the peers in turn, so that the
ratios hold where the milliseconds do not.
"""
