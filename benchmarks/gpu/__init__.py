"""The step on a GPU: pictures a second, share of the card's peak, memory, and transformers'."""
