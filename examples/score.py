"""Which continuation does the model find most likely? Log-probabilities, without generating anything.

Needs a server: `argosy serve`.
"""

import math

import argosy

CONTEXT = "The capital of France is"
CONTINUATIONS = (" Paris", " London", " a banana")

with argosy.Client() as client:
    result = client.generation.score([(CONTEXT, continuation) for continuation in CONTINUATIONS])
    for continuation, score in zip(CONTINUATIONS, result.scores, strict=True):
        greedy = ", which is what it would write" if score.is_greedy else ""
        print(f"{CONTEXT}{continuation}: {math.exp(score.logprob):.4%}{greedy}")
    print(f"{result.usage.prompt_tokens} tokens read")
