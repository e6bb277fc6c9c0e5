"""Answers that cannot have the wrong form: the engine only ever draws tokens that keep to it.

Needs a server: `argosy serve`.
"""

import argosy

SHIP = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "masts": {"type": "integer", "minimum": 1, "maximum": 5},
        "cargo": {"enum": ["tea", "spices", "silk"]},
    },
    "required": ["name", "masts", "cargo"],
    "additionalProperties": False,
}

with argosy.Client() as client:
    question = [{"role": "user", "content": "Invent a sailing ship. Answer with JSON."}]
    ship = client.generation.generate(question, json_schema=SHIP, max_tokens=80, temperature=0.8, seed=3).json()
    print(f"a JSON schema: {ship['name']} has {ship['masts']} masts and carries {ship['cargo']}")

    time = client.generation.generate("High tide is at ", regex=r"[01][0-9]:[0-5][0-9]", max_tokens=16)
    print(f"a regular expression: {time.text}")

    verdict = client.generation.generate("Is the sea salty? Answer:", choice=[" yes", " no"], max_tokens=4)
    print(f"a choice:{verdict.text}")
