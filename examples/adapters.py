"""Loads a LoRA adapter into the running server, compares it with the base model, and takes it out again.

requires: a PEFT adapter for the served model, below the server's data directory or one of ARGOSY_ADAPTERS__ROOTS;
examples/train_adapter.py makes one.

usage: python examples/adapters.py DIRECTORY
"""

import sys
from pathlib import Path

import argosy

NAME = "example"
QUESTION = [{"role": "user", "content": "What is the moon?"}]

with argosy.Client() as client:
    # Returns when the adapter is ready, or raises what is wrong with it. No running request is disturbed.
    adapter = client.adapters.load(NAME, Path(sys.argv[1]))
    print(f"{adapter.name}: rank {adapter.rank}, {adapter.size_bytes} bytes, version {adapter.version[:12]}")

    for name in ("", NAME):
        answer = client.generation.generate(QUESTION, adapter=name, max_tokens=40, temperature=0.0)
        print(f"{name or 'base model'}: {answer.text.strip()}")

    # Running requests may finish first, for at most five seconds.
    print(f"{NAME} is {client.adapters.unload(NAME, drain_timeout=5).state}")
    try:
        client.generation.generate(QUESTION, adapter=NAME)
    except (argosy.AdapterNotFoundError, argosy.AdapterNotReadyError) as error:
        print(error)
