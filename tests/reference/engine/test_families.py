"""Every served architecture against transformers and PEFT, on small random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from argosy_services.engine.base import Request, Sampling
from argosy_services.engine.factory import create_engine
from argosy_services.engine.torch_engine.config import UnsupportedModelError
from argosy_services.models.types import LocalModel

from .conftest import greedy_errors, settings
from .tiny import FAMILIES, SHAPE, local_model, random_prompts, save_tiny, serve

GREEDY = Sampling(temperature=0.0)
# One of each architecture, for what depends on it and on nothing finer.
ARCHITECTURES = (
    "mistral, sliding window",
    "qwen 2",
    "qwen 3",
    "smollm 3",
    "gemma 2",
    "gemma 3",
    "gemma 3, text of a model that sees images",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_equals_transformers(family: str, tmp_path: Path, smollm2: LocalModel) -> None:
    reference = save_tiny(family, tmp_path)
    collector = serve(tmp_path, smollm2)
    prompts = random_prompts(2, 7, 30, 33, 100, 170)
    answers = collector.run(
        [Request(f"s{index}", prompt, 0, score_from=1) for index, prompt in enumerate(prompts)]
        + [Request(f"g{index}", prompt, 40, GREEDY) for index, prompt in enumerate(prompts)]
    )
    for index, prompt in enumerate(prompts):
        with torch.inference_mode():
            scored = reference(torch.tensor([prompt])).logits[0].log_softmax(-1)
        expected = scored[:-1].gather(-1, torch.tensor(prompt[1:])[:, None]).squeeze(1)
        given = torch.tensor([entry.logprob for entry in answers[f"s{index}"].logprobs])
        torch.testing.assert_close(given, expected, atol=2e-4, rtol=1e-4)
        assert greedy_errors(reference, prompt, answers[f"g{index}"].tokens) == [], f"prompt {index}"
    # Once more, now that the prompts' blocks are in the cache, and with a longer end.
    longer = [prompt + answers[f"g{index}"].tokens for index, prompt in enumerate(prompts)]
    again = collector.run([Request(str(index), prompt, 20, GREEDY) for index, prompt in enumerate(longer)])
    assert again["5"].cached_tokens >= 160
    for index, prompt in enumerate(longer):
        assert greedy_errors(reference, prompt, again[str(index)].tokens) == [], f"prompt {index} from the cache"
    collector.engine.close()


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_adapters_of_a_family_equal_peft(family: str, tmp_path: Path, smollm2: LocalModel) -> None:
    from peft import LoraConfig, get_peft_model

    reference = save_tiny(family, tmp_path / "base")
    modules = r".*\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
    if "images" in family:
        modules = r".*language_model" + modules
    tuned = get_peft_model(reference, LoraConfig(r=4, lora_alpha=8, target_modules=modules))  # type: ignore[arg-type]
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    tuned.save_pretrained(str(tmp_path / "adapter"))
    tuned.eval()
    collector = serve(tmp_path / "base", smollm2)
    weights = collector.engine.read_adapter(tmp_path / "adapter")
    assert set(weights.target_modules) == {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}
    collector.engine.load_adapter("tuned", weights).result(30)
    prompts = random_prompts(5, 60, 90)
    answers = collector.run(
        [Request(f"a{index}", prompt, 12, GREEDY, adapter="tuned") for index, prompt in enumerate(prompts)]
        + [Request(f"b{index}", prompt, 12, GREEDY) for index, prompt in enumerate(prompts)]
    )
    for index, prompt in enumerate(prompts):
        assert greedy_errors(tuned, prompt, answers[f"a{index}"].tokens) == [], f"prompt {index} with the adapter"
        with tuned.disable_adapter():
            assert greedy_errors(tuned, prompt, answers[f"b{index}"].tokens) == [], f"prompt {index} without"
    assert any(answers[f"a{index}"].tokens != answers[f"b{index}"].tokens for index in range(3))
    collector.engine.close()


@pytest.mark.parametrize("family", ["llama", "gemma 2", "gemma 3"])
def test_bfloat16_rounds_as_transformers_does(family: str, tmp_path: Path, smollm2: LocalModel) -> None:
    reference = save_tiny(family, tmp_path)
    collector = serve(tmp_path, smollm2, dtype="bfloat16")
    prompts = random_prompts(30, 33, 100)
    answers = collector.run([Request(str(index), prompt, 0, score_from=1) for index, prompt in enumerate(prompts)])
    narrow = type(reference).from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager").eval()
    ours, theirs = [], []
    for index, prompt in enumerate(prompts):
        chosen = torch.tensor(prompt[1:])[:, None]
        with torch.inference_mode():
            exact, rounded = (
                model(torch.tensor([prompt])).logits[0, :-1].float().log_softmax(-1).gather(-1, chosen).squeeze(1)
                for model in (reference, narrow)
            )
        ours.append(torch.tensor([entry.logprob for entry in answers[str(index)].logprobs]) - exact)
        theirs.append(rounded - exact)
    assert torch.cat(ours).square().mean().sqrt() < 1.1 * torch.cat(theirs).square().mean().sqrt()
    collector.engine.close()


def test_a_sharded_checkpoint_is_read_whole(tmp_path: Path, smollm2: LocalModel) -> None:
    reference = save_tiny("gemma 3", tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    collector = serve(tmp_path, smollm2)
    (prompt,) = random_prompts(50)
    answer = collector.run([Request("0", prompt, 12, GREEDY)])["0"].tokens
    assert greedy_errors(reference, prompt, answer) == []
    collector.engine.close()


def test_weights_that_do_not_fit_the_configuration_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    bias = {"model.layers.1.self_attn.q_proj.bias": torch.ones(48)}
    wrong = {
        r"model\.norm\.weight has shape \(47,\)": {**weights, "model.norm.weight": torch.ones(47)},
        r"model\.norm\.weight has type torch\.int8": {**weights, "model.norm.weight": torch.ones(48, dtype=torch.int8)},
        r"no tensor model\.norm\.weight": {key: weights[key] for key in weights if key != "model.norm.weight"},
        r"1 tensors .* no use for, such as model\.layers\.1\.self_attn\.q_proj\.bias": weights | bias,
    }
    for problem, tensors in wrong.items():
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(UnsupportedModelError, match=problem):
            create_engine(local_model(tmp_path), settings(), "{}")
    save_file(weights, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.2\."):
        create_engine(local_model(tmp_path), settings(), "{}")
