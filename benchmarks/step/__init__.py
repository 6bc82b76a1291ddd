"""Our step against the peers', at three sizes: `python -m benchmarks.step`."""
