"""Benchmarks on the simulated twin, beside what one could do instead."""
