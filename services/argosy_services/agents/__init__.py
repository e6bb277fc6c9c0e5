"""Agents: a language model that reasons in steps and calls tools."""
