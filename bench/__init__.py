"""Benchmarks: `python -m bench.demo`, `python -m bench.report`, `python -m bench.accuracy`, and
`pytest bench` for single cases (`--full` for the whole grid)."""
