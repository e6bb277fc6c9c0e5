"""Where the time of a request went, and what it waited for: many at once, and the slowest of them explained."""

from concurrent.futures import ThreadPoolExecutor

import argosy

with argosy.Client() as client:

    def ask(number: int) -> str:
        question = [{"role": "user", "content": f"Tell me something about the number {number}."}]
        return client.generation.generate(question, max_tokens=24).origin.request_id

    with ThreadPoolExecutor(8) as threads:
        ids = list(threads.map(ask, range(8)))

    slowest = max(map(client.generation.explain, ids), key=lambda explanation: explanation.seconds)
    print(f"{slowest.request_id} took {slowest.seconds:.2f} s, {slowest.completion_tokens} tokens")
    for part in slowest.stages:
        print(f"  {part.stage:<12} {part.seconds:.3f} s")
    for wait in slowest.waits:
        behind = f", behind {wait.ahead.own + wait.ahead.others} sequences" if wait.ahead else ""
        print(f"  waited {wait.seconds:.3f} s for {wait.cause}{behind}")
