"""Finds the sentences that are nearest in meaning to a question.

Needs a server: `argosy serve`.
"""

import argosy

SENTENCES = (
    "An anchor holds a vessel to the seabed.",
    "The harbour master collects the fees on Mondays.",
    "Silk was carried from China to Venice.",
    "A compass needle points to magnetic north.",
)
QUESTION = "How do I keep my boat in one place?"

with argosy.Client() as client:
    result = client.embeddings.embed([QUESTION, *SENTENCES])
    print(f"{len(result)} vectors of {result.dimensions} dimensions, {result.usage.prompt_tokens} tokens\n{QUESTION}")

    # The model gives vectors of length 1, so that the scalar product is the cosine. `result.numpy()` is an array.
    question, *sentences = result.vectors
    scores = [sum(a * b for a, b in zip(question, sentence, strict=True)) for sentence in sentences]
    for score, sentence in sorted(zip(scores, SENTENCES, strict=True), reverse=True):
        print(f"  {score:+.3f}  {sentence}")
