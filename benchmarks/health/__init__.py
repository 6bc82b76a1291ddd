"""Planted failures, sound runs, and what label-free figures say of a probe."""
