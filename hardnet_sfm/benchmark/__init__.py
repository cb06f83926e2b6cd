"""Benchmarks of the command `evaluate`: they describe, match or search a data set and score the results.

This package combines packages that do not know each other. `evaluation` handles only distances, rankings and ground
truth. The packages for features, matching and retrieval know nothing about ground truth.
"""
