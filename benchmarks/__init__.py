"""Measurements behind the numbers of the README: `make bench` runs them and writes the results."""
