"""Argosy and other engines under the same load in one run; `bench/peers.py` is the command.

A side is one engine in a process of its own, kept while the others are measured. Those that live in another environment
are children that read loads and write times as lines of JSON (`child`, `process`); servers are called over the network.
"""
