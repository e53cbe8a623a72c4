"""All benchmarks: whatever the modules of this package list in ``BENCHMARKS``, in the order of the report."""

from __future__ import annotations

import pkgutil
from importlib import import_module

import benchmarks
from benchmarks.harness import Benchmark

_FIRST = ("record", "heartbeat", "imports", "growth", "lists", "start", "chat", "recorder", "bus", "sync")
"""These modules come first, in this order; the others follow by name."""
_NOT_MEASURING = (
    "__main__",
    "board",
    "goals",
    "harness",
    "peers",
    "plots",
    "report",
    "repositories",
    "tables",
)


def _collect() -> dict[str, Benchmark]:
    names = {module.name for module in pkgutil.iter_modules(benchmarks.__path__)} - set(_NOT_MEASURING)
    ordered = [name for name in _FIRST if name in names] + sorted(names - set(_FIRST))
    modules = [import_module(f"benchmarks.{name}") for name in ordered]
    return {each.name: each for module in modules for each in getattr(module, "BENCHMARKS", ())}


ALL = _collect()
