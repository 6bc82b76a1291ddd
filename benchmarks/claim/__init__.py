"""The paper's claim of 3x, in time and memory."""
