"""Streams text as the model writes it, then tells what it took.

Needs a server: `argosy serve`. ARGOSY_ADDRESS names another one than 127.0.0.1:50051.
"""

import argosy

with argosy.Client() as client:
    with client.generation.stream("Once upon a time, a lighthouse", max_tokens=48, temperature=0.7, seed=7) as stream:
        for text in stream.text():
            print(text, end="", flush=True)

    answer = stream.final
    print(f"\n\n{answer.usage.completion_tokens} tokens by {answer.origin.model}, ended by {answer.finish_reason}")
    if answer.timings.decode:
        print(f"{answer.usage.completion_tokens / answer.timings.decode:.0f} tokens a second")

    # Leaving the block early cancels the call, and the server stops working on it at its next step.
    with client.generation.stream("Count to a thousand: 1, 2, 3,", max_tokens=2000) as stream:
        print("cancelled after:", next(stream.text()))
