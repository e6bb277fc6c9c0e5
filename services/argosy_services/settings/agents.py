"""Agents and their tools."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, model_validator

from argosy_services.settings.section import LIVE, Section


class McpServerSettings(Section):
    """A server of the Model Context Protocol whose tools agents may use: a program, or an address."""

    command: tuple[str, ...] = Field(default=(), description="Program and arguments, spoken to by stdio.")
    env: dict[str, SecretStr] = Field(default={}, description="Its environment; values enter no prompt.")
    url: str = Field(default="", description="Address of a server that speaks streamable HTTP.")
    headers: dict[str, SecretStr] = Field(default={}, description="Sent along; values enter no prompt.")
    approval: Literal["never", "writes", "always"] = Field(
        default="writes",
        description="Which calls wait for a person; writes are those of tools that do not declare to only read.",
    )
    timeout_s: float = Field(default=30.0, gt=0, le=600, description="Longest call.")

    @property
    def complete(self) -> bool:
        """Whether it says where the server is; where it does not, the process has its secrets only."""
        return bool(self.command or self.url)

    @model_validator(mode="after")
    def _one_transport(self) -> McpServerSettings:
        # On Ray every process reads the secrets from its environment, but only agents are told the rest.
        secrets_only = not self.complete and bool(self.env or self.headers)
        if bool(self.command) == bool(self.url) and not secrets_only:
            raise ValueError("a server of agents.mcp has either a command or a url")
        return self


class AgentSettings(Section):
    """Bounds of agent runs, and the tools that are off unless they are asked for."""

    http_hosts: tuple[str, ...] = Field(
        default=(), description="Hosts that the tool http_get may fetch from, such as *.example.org; none turns it off."
    )
    python: bool = Field(
        default=False, description="Offer the tool python, which runs code in a sandbox; refused where there is none."
    )
    delegate: bool = Field(default=False, description="Offer the tool delegate, which starts sub-agents.")
    mcp: dict[str, McpServerSettings] = Field(
        default={}, description="MCP servers by name; theirs stands before tools'."
    )

    max_running: int = Field(
        default=32, ge=1, description="Most runs at once; one more is refused.", json_schema_extra=LIVE
    )
    priority: int = Field(
        default=-1, ge=-2, le=0, description="Priority of what runs ask of models; below 0 other requests go first."
    )
    keep_runs: int = Field(
        default=10_000,
        ge=1,
        description="Runs of one API key that are kept once they are finished or abandoned; older ones are deleted.",
    )
    wait_seconds: float = Field(
        default=86_400.0, gt=0, description="How long a run waits for an approval, or for a result of its caller's."
    )
