"""A conversation with memory: each request carries what was said so far.

Needs a server: `argosy serve`.
"""

import argosy

messages = [argosy.ChatMessage("system", "You are a friendly sailor. Answer in one sentence.")]

with argosy.Client() as client:
    for question in ("What is a knot, for a ship?", "And how do sailors measure it?"):
        messages.append(argosy.ChatMessage("user", question))
        print(f"> {question}")

        answer = client.generation.generate(messages, max_tokens=60, temperature=0.0)
        print(answer.text.strip())

        messages.append(argosy.ChatMessage("assistant", answer.text))
        # The beginning of the conversation was computed before: it comes from the prefix cache.
        print(f"  ({answer.usage.cached_tokens} of {answer.usage.prompt_tokens} prompt tokens from the cache)")

    print(f"\nthe whole conversation: {client.tokenization.count_tokens(messages)} tokens")
