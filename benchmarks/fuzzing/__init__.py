"""Fuzzing of everything that hybridcore reads (F54); `python -m benchmarks.fuzz` runs it."""
