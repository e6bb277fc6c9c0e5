"""Log lines of the servers, their own and those of libraries: one form, on standard error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Literal

import structlog
from structlog.typing import Processor

from argosy_services import tracing

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
# Libraries that tell at INFO what only their authors want to know.
_QUIET = ("asyncio", "filelock", "httpcore", "httpx", "huggingface_hub", "urllib3")


def configure(level: Literal["debug", "info", "warning", "error"], form: Literal["json", "console"]) -> None:
    """Sets up structlog and the standard library's logging. Lines made within a call carry its `request_id`
    and, where it is traced, its `trace_id`."""
    common: Sequence[Processor] = (
        structlog.contextvars.merge_contextvars,
        tracing.log_ids,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    )
    # Not through the standard library, which would make a line cost as much as a small call.
    structlog.configure(
        processors=[*common, *_rendering(form)],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=_Logger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=common,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(form)],
        )
    )
    logging.basicConfig(level=_LEVELS[level], handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


class _Logger(structlog.WriteLogger):
    """Writes finished lines to standard error; its name is what `get_logger` was given."""

    def __init__(self, name: str = "argosy") -> None:
        super().__init__(sys.stderr)
        self.name = name


def _rendering(form: Literal["json", "console"]) -> Sequence[Processor]:
    # Tracebacks are plain: the richer forms print local variables, and with them what callers sent.
    if form == "console":
        plain = structlog.dev.plain_traceback
        return (structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain),)
    return (structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False))
