"""Settings: where they come from, what is refused, what is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from argosy_services.settings import Settings, is_loopback

KEY = "correct-horse-battery"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("ARGOSY_"):
            monkeypatch.delenv(name)


def test_arguments_come_before_the_environment_and_that_before_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "argosy.yaml"
    file.write_text("port: 1\nmetrics_port: 1\nmax_message_bytes: 70000\ngeneration:\n  max_batch: 7\n")
    monkeypatch.setenv("ARGOSY_CONFIG", str(file))
    monkeypatch.setenv("ARGOSY_PORT", "2")
    monkeypatch.setenv("ARGOSY_METRICS_PORT", "2")
    settings = Settings(port=3)
    assert (settings.port, settings.metrics_port, settings.max_message_bytes) == (3, 2, 70_000)
    assert settings.generation.max_batch == 7


def test_nested_settings_have_variables_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_GENERATION__DTYPE", "bfloat16")
    assert Settings().generation.dtype == "bfloat16"
    assert Settings().generation.model == "smollm2-135m-instruct"


def test_a_missing_file_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ARGOSY_CONFIG", str(tmp_path / "absent.yaml"))
    with pytest.raises(ValueError, match="which is no file"):
        Settings()


@pytest.mark.parametrize("text", ["prot: 1\n", "generation:\n  max_bach: 1\n", "port: 70000\n"])
def test_what_the_file_gets_wrong_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    file = tmp_path / "argosy.yaml"
    file.write_text(text)
    monkeypatch.setenv("ARGOSY_CONFIG", str(file))
    with pytest.raises(ValidationError, match=r"prot|max_bach|port"):
        Settings()


def test_the_data_directory_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings().models_dir == tmp_path / ".local/share/argosy/models"
    assert Settings(data_dir=Path("~/elsewhere")).adapter_roots == (tmp_path / "elsewhere/adapters",)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com"])
def test_a_door_to_other_machines_needs_keys(host: str) -> None:
    with pytest.raises(ValidationError, match="ARGOSY_API_KEYS"):
        Settings(host=host)
    Settings(host=host, insecure=True)
    Settings(host=host, api_keys=(SecretStr(KEY),))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost", "unix:/run/argosy.sock"])
def test_loopback_needs_none(host: str) -> None:
    assert is_loopback(host)
    Settings(host=host)


def test_keys_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_API_KEYS", f"{KEY}, another-good-key,")
    assert [key.get_secret_value() for key in Settings().api_keys] == [KEY, "another-good-key"]


def test_keys_that_go_before_others_are_among_the_keys() -> None:
    keys = (SecretStr(KEY), SecretStr("another-good-key"))
    assert Settings(api_keys=keys, priority_keys=keys[1:]).priority_keys == keys[1:]
    with pytest.raises(ValidationError, match="not one of api_keys") as caught:
        Settings(api_keys=keys[:1], priority_keys=keys[1:])
    assert "another-good-key" not in str(caught.value)


@pytest.mark.parametrize("keys", ["short", "with a space in it", "not-ascii-é"])
def test_weak_keys_are_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    monkeypatch.setenv("ARGOSY_API_KEYS", keys)
    with pytest.raises(ValidationError, match="at least 8 characters") as caught:
        Settings()
    assert keys not in str(caught.value)


def test_no_error_and_no_dump_shows_a_key() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"api_keys": [KEY], "tls_key": "key.pem"})
    assert KEY not in str(caught.value)
    settings = Settings(api_keys=(SecretStr(KEY),))
    assert KEY not in f"{settings!r} {settings.redacted()}"


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(ValidationError, match="set together"):
        Settings(tls_certificate=Path("certificate.pem"))


@pytest.mark.parametrize(
    ("generation", "named"),
    [
        ({"speculation": "draft"}, "draft_model"),
        ({"engine": "tensorrt_llm", "draft_model": "small"}, "engine torch"),
        ({"engine": "tensorrt_llm", "speculation": "prompt_lookup"}, "engine torch"),
    ],
)
def test_guessing_ahead_needs_what_guesses(generation: dict[str, str], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Settings(generation=generation)  # type: ignore[arg-type]


def test_every_setting_is_described() -> None:
    sections = [Settings, *(field.annotation for field in Settings.model_fields.values())]
    for section in sections:
        for name, field in getattr(section, "model_fields", {}).items():
            assert field.description or hasattr(field.annotation, "model_fields"), f"{section}.{name}"
