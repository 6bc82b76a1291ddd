"""What pre-training is worth, measured: `make results` fills docs/results.md."""
