"""The step on a GPU: images a second, share of the peak and memory of ours and the peers."""
