"""Guessing tokens ahead of the model, which checks several of them in one step."""
