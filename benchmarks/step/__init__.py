"""The step against the peers' that install here, at three sizes: `python -m benchmarks.step`."""
