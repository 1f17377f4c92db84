"""Measures: this machine for estimates, and clips against what was predicted of them."""
