"""Decoders and how their weights are read."""
