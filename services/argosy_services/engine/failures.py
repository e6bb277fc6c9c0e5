"""What the callers of any engine are told."""

from __future__ import annotations

from argosy_services.errors import ArgosyError, Reason


def not_running() -> ArgosyError:
    """The engine failed or has ended."""
    return ArgosyError(
        Reason.ENGINE_FAILED, "the engine stopped after an internal fault; its log has the cause", retry_after_s=1.0
    )


def not_numbers(adapter: str | None) -> ArgosyError:
    """A sequence cannot go on, as its logits are infinite or not numbers."""
    if adapter is None:
        return ArgosyError(
            Reason.INTERNAL, "the model's logits are not finite numbers; try other parameters or weights"
        )
    detail = "its weights lead to logits that are not finite numbers"
    return ArgosyError(
        Reason.ADAPTER_INVALID, f"adapter {adapter}: {detail}; train it again", adapter=adapter, detail=detail
    )


def adapter_gone(key: str) -> ArgosyError:
    """An adapter left the engine before a sequence that uses it ended."""
    return ArgosyError(
        Reason.ADAPTER_NOT_READY,
        f"adapter {key} left the engine while the request ran; load it again and retry",
        adapter=key,
        state="unloaded",
    )
