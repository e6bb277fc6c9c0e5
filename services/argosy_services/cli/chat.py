"""`argosy chat`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from argosy_services.cli.generate import Adapter, Model, Seed, Temperature
from argosy_services.cli.session import argument_or_stdin, session_of


def chat(
    context: typer.Context,
    *,
    message: Annotated[
        str | None, typer.Argument(help="One message to answer; without it, and without a pipe, a conversation.")
    ] = None,
    system: Annotated[str, typer.Option(help="Instructions for the whole conversation.")] = "",
    model: Model = "",
    adapter: Adapter = "",
    max_tokens: Annotated[int, typer.Option(help="Most tokens of one answer.", min=1)] = 512,
    temperature: Temperature = None,
    seed: Seed = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Hold a conversation even where input is no terminal.")
    ] = False,
) -> None:
    """Talk to a model. Ctrl-C ends the running answer only; /help lists the commands of a conversation."""
    from argosy_services.cli.conversation import Conversation

    with session_of(context).client() as client:
        conversation = Conversation(
            client.generation,
            system=system,
            adapter=adapter,
            options={"model": model, "max_tokens": max_tokens, "temperature": temperature, "seed": seed},
        )
        if message is None and (interactive or sys.stdin.isatty()):
            conversation.run()
        else:
            conversation.say(argument_or_stdin(message, "the message"))
