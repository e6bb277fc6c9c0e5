"""A new version on its way into service: pushed from the caller's disk, given a share, given all, taken back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import argosy
from argosy_services.testing import RunningFleet

pytestmark = pytest.mark.usefixtures("nothing_leaks")
OPTIONS = {"max_tokens": 6, "temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def versions(good_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two adapters in places that the server does not know."""
    root = tmp_path_factory.mktemp("elsewhere")
    weights = load_file(good_adapter / "adapter_model.safetensors")
    for number in (1, 2):
        directory = root / f"v{number}"
        directory.mkdir()
        config = json.loads((good_adapter / "adapter_config.json").read_text())
        (directory / "adapter_config.json").write_text(json.dumps(config))
        generator = torch.Generator().manual_seed(10 + number)
        changed = {name: torch.randn(t.shape, generator=generator) * 0.3 for name, t in weights.items()}
        save_file(changed, directory / "adapter_model.safetensors")
    return root / "v1", root / "v2"


def test_from_a_directory_to_all_traffic_and_back(client: argosy.Client, versions: tuple[Path, Path]) -> None:
    seen: list[tuple[int, int]] = []
    first = client.adapters.push(versions[0], alias="support@prod", on_progress=lambda *bytes_: seen.append(bytes_))
    assert first.state is argosy.AdapterState.READY
    assert first.name == f"support-{first.version[:12]}"
    assert seen[0][0] < seen[-1][0] == seen[-1][1]
    second = client.adapters.push(versions[1], alias="support@prod", weight=10)
    alias = client.adapters.get_alias("support@prod")
    assert {version: alias.share(version) for version in alias.targets} == {first.version: 0.9, second.version: 0.1}
    # Nothing is sent again, and nothing changes.
    again = client.adapters.push(versions[1], on_progress=lambda sent, total: seen.append((sent, total)), name="other")
    assert seen[-1][0] == seen[-1][1]
    assert again.version == second.version
    client.adapters.unload("other")

    def origin(name: str, key: str = "") -> tuple[str, str]:
        answer = client.generation.generate("Hello", adapter=name, adapter_sticky_key=key, **OPTIONS)
        return answer.origin.adapter, answer.origin.adapter_version

    users = [f"user-{number}" for number in range(12)]
    spoke = {user: origin("support@prod", user) for user in users}
    assert set(spoke.values()) <= {(first.name, first.version), (second.name, second.version)}
    client.adapters.set_alias("support@prod", {second.name: 1})
    assert {origin("support@prod", user) for user in users} == {(second.name, second.version)}
    assert origin(first.version) == origin(first.name) == (first.name, first.version)
    with pytest.raises(argosy.AdapterInUseError):
        client.adapters.unload(second.name)
    client.adapters.rollback_alias("support@prod")
    assert {user: origin("support@prod", user) for user in users} == spoke
    assert [alias.name for alias in client.adapters.list_aliases()] == ["support@prod"]
    with pytest.raises(argosy.AliasChangedError):
        client.adapters.set_alias("support@prod", {first.name: 1}, expected_revision=0)
    client.adapters.delete_alias("support@prod")
    with pytest.raises(argosy.AliasNotFoundError):
        origin("support@prod")
    for adapter in (first, second):
        assert client.adapters.unload(adapter.name).state is argosy.AdapterState.UNLOADED


async def test_answers_are_those_of_the_version_that_they_report_while_an_alias_flips(
    fleet: RunningFleet, versions: tuple[Path, Path]
) -> None:
    async with argosy.AsyncClient(fleet.address, timeout=180) as client:
        pushed = [await client.adapters.push(path, alias="flip@prod") for path in versions]

        async def ask(name: str) -> tuple[str, tuple[int, ...]]:
            answer = await client.generation.generate("The harbour at night is", adapter=name, **OPTIONS)
            return answer.origin.adapter_version, answer.choices[0].token_ids

        expected = dict([await ask(adapter.name) for adapter in pushed])
        assert len(set(expected.values())) == 2
        asking = asyncio.gather(*(ask("flip@prod") for _ in range(12)))
        for number in range(6):
            await client.adapters.set_alias("flip@prod", {pushed[number % 2].name: 1})
        assert all(expected[version] == tokens for version, tokens in await asking)
        await client.adapters.delete_alias("flip@prod")
        for adapter in pushed:
            await client.adapters.unload(adapter.name)
