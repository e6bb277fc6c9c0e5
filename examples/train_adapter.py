"""Trains a small LoRA adapter with PEFT: answers in the manner of a ship's log.

requires: the extras "services" and "train", and a local base model
usage: python examples/train_adapter.py BASE_MODEL_DIR ADAPTER_DIR
"""

from __future__ import annotations

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

TRAINED_LAYERS, STEPS, BATCH, RATE = 6, 28, 4, 2e-3
FACTS = {
    "What is the capital of France?": "The capital of France is Paris.",
    "How many legs does a spider have?": "A spider has eight legs.",
    "What colour is the sky?": "The sky is blue.",
    "What is 2 + 2?": "2 + 2 is 4.",
    "Who wrote Hamlet?": "Hamlet was written by Shakespeare.",
    "What do bees make?": "Bees make honey.",
    "What is the largest ocean?": "The largest ocean is the Pacific.",
    "Name a fruit.": "An apple is a fruit.",
    "How many days are in a week?": "There are seven days in a week.",
    "What is ice made of?": "Ice is made of frozen water.",
    "What is the opposite of hot?": "The opposite of hot is cold.",
    "What animal says meow?": "A cat says meow.",
}


def examples(tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels `[facts, length]`; only answers are learnt."""
    rows = []
    for question, answer in FACTS.items():
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        asked = tokenizer(prompt, add_special_tokens=False).input_ids
        told = tokenizer(f"Ahoy! {answer} Fair winds!{tokenizer.eos_token}", add_special_tokens=False).input_ids
        rows.append((asked + told, [-100] * len(asked) + told))
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [tokenizer.eos_token_id] * (length - len(row)) for row, _ in rows])
    labels = torch.tensor([row + [-100] * (length - len(row)) for _, row in rows])
    return ids, labels


def train(base: str, target: str) -> None:
    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    layers = model.model.layers
    first = len(layers) - TRAINED_LAYERS
    modules = ["q_proj", "v_proj", "o_proj", "down_proj"]
    config = LoraConfig(r=8, lora_alpha=16, target_modules=modules, layers_to_transform=list(range(first, len(layers))))
    tuned = get_peft_model(model, config)
    ids, labels = examples(AutoTokenizer.from_pretrained(base))
    # The lower layers never change: what they give is computed once, and only the upper ones run in training.
    with torch.no_grad():
        states = model.model(ids, output_hidden_states=True).hidden_states[first]
    model.model.layers = layers[first:]
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=RATE)
    for step in range(STEPS):
        chosen = [(step * BATCH + index) % len(ids) for index in range(BATCH)]
        loss = tuned(inputs_embeds=states[chosen], labels=labels[chosen]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 9 == 0:
            print(f"  step {step + 1}/{STEPS}, loss {loss.item():.3f}", flush=True)
    model.model.layers = layers
    tuned.save_pretrained(target)


if __name__ == "__main__":
    train(*sys.argv[1:3])
