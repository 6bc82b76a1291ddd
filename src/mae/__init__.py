"""Masked autoencoders: mask, encode the visible patches, rebuild the hidden pixels."""
