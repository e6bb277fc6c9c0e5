"""A small job end to end: reads texts, finds the passages that matter, computes a figure, and names its sources.

Needs a server: `argosy serve`. Arguments: a question and text files; without any it has its own.
"""

import json
import sys
from pathlib import Path

import argosy

TEXTS = {
    "harbour.txt": "The harbour has 12 piers.\n\nAt each of its piers lie 4 ships.",
    "town.txt": "The town was founded in 1712.\n\nIts library closes at nine.",
}
question = sys.argv[1] if sys.argv[1:] else "How many ships lie in the harbour, 12 * 4?"
texts = {name: Path(name).read_text(encoding="utf-8") for name in sys.argv[2:]} or TEXTS
passages = [(name, part) for name, text in texts.items() for part in text.split("\n\n") if part.strip()]

with argosy.Client() as client:
    task, *vectors = client.embeddings.embed([question, *(part for _, part in passages)]).vectors
    scores = [sum(a * b for a, b in zip(task, vector, strict=True)) for vector in vectors]
    found = [passages[place] for place in sorted(range(len(passages)), key=lambda place: -scores[place])[:2]]
    run = client.agents.run(
        f"{' '.join(part for _, part in found)} {question}",
        tools=["calculator"],
        budget=argosy.AgentBudget(max_steps=4, max_tokens=400),
    )
    computed = [event.observation for event in run if isinstance(event, argosy.ToolReturned)]
    report = {"question": question, "answer": run.answer, "computed": computed, "sources": found, "run": run.run_id}
    print(json.dumps(report, indent=2, ensure_ascii=False))
