"""Micro-benchmarks for `make benchmark`: what a call costs beside moving bytes. Needs pytest-benchmark."""
