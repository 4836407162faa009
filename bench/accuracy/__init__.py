"""What a fixed head costs in accuracy, on real data: `python -m bench.accuracy`."""
