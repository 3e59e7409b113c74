"""Benchmarks: accuracy, latency, throughput, memory; run by hand, results in `results/`."""
