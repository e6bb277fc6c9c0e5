"""From exceptions to one line on standard error and an exit code. Anything unknown is a bug and keeps its traceback."""

from __future__ import annotations

from dataclasses import dataclass

from argosy_services.cli.exit_codes import ExitCode


@dataclass(frozen=True, slots=True)
class Report:
    """What to tell about a failure: why, in words, what to do next, and the id that finds it in the server's log."""

    reason: str
    message: str
    code: ExitCode
    hint: str = ""
    request_id: str = ""


def report(error: BaseException) -> Report | None:
    """The report of a failure that is somebody's to mend; None for a bug."""
    for read in (_of_call, _of_store, _of_cluster, _of_settings, _of_module, _of_use):
        found = read(error)
        if found is not None:
            return found
    return None


def show(failure: Report) -> None:
    """Prints one red line on standard error."""
    from argosy_services.cli.output import stderr

    hint = f"; {failure.hint}" if failure.hint else ""
    known_as = f" [request id {failure.request_id}]" if failure.request_id else ""
    line = f"error {failure.reason}: {failure.message}{hint}{known_as}".replace("\n", " ")
    stderr().print(line, style="bold red", markup=False, highlight=False, soft_wrap=True)


def _of_call(error: BaseException) -> Report | None:
    import argosy

    if not isinstance(error, argosy.ArgosyError):
        return None
    table: tuple[tuple[type[argosy.ArgosyError], ExitCode, str], ...] = (
        (argosy.ConnectError, ExitCode.UNAVAILABLE, ""),
        (argosy.ServerStartingError, ExitCode.UNAVAILABLE, "`argosy health --wait 60` waits for it"),
        (argosy.ResourceExhaustedError, ExitCode.UNAVAILABLE, ""),
        (argosy.UnavailableError, ExitCode.UNAVAILABLE, ""),
        (argosy.CallCancelledError, ExitCode.UNAVAILABLE, "try again"),
        (argosy.AbortedError, ExitCode.UNAVAILABLE, "try again"),
        (argosy.InvalidRequestError, ExitCode.USAGE, ""),
        (argosy.NotSupportedError, ExitCode.USAGE, ""),
        (argosy.NotFoundError, ExitCode.NOT_FOUND, ""),
        (argosy.AuthenticationError, ExitCode.NOT_ALLOWED, "give the key with ARGOSY_API_KEY or --api-key"),
        (argosy.PermissionDeniedError, ExitCode.NOT_ALLOWED, ""),
        (argosy.DeadlineExceededError, ExitCode.DEADLINE, "--timeout allows more time"),
        (argosy.AlreadyExistsError, ExitCode.CONFLICT, ""),
        (argosy.FailedPreconditionError, ExitCode.CONFLICT, ""),
        (argosy.ArgosyError, ExitCode.SERVER_FAULT, ""),
    )
    code, hint = next((code, hint) for kind, code, hint in table if isinstance(error, kind))
    if error.retry_after is not None:
        hint = f"try again in {error.retry_after:g} s"
    return Report(error.reason or error.code.name, error.message, code, hint, error.request_id)


def _of_store(error: BaseException) -> Report | None:
    from argosy_services.engine.tensorrt_llm import errors as tensorrt_llm
    from argosy_services.errors import ArgosyError, Reason
    from argosy_services.models import errors as store

    if isinstance(error, ArgosyError):
        code = ExitCode.NOT_FOUND if error.reason is Reason.MODEL_NOT_FOUND else ExitCode.FAILED
        return Report(str(error.reason), error.message, code)
    if not isinstance(error, store.ModelStoreError):
        return None
    codes = {
        store.InvalidSourceError: ExitCode.USAGE,
        store.DownloadError: ExitCode.UNAVAILABLE,
        store.NameTakenError: ExitCode.CONFLICT,
        tensorrt_llm.BuildRequestError: ExitCode.USAGE,
        tensorrt_llm.EngineMismatchError: ExitCode.CONFLICT,
    }
    reason = "TENSORRT_LLM" if isinstance(error, tensorrt_llm.TensorRtLlmError) else "MODEL_STORE"
    return Report(reason, str(error), codes.get(type(error), ExitCode.FAILED))


def _of_cluster(error: BaseException) -> Report | None:
    from argosy_services.cluster.local import ClusterError

    return Report("CLUSTER", str(error), ExitCode.UNAVAILABLE) if isinstance(error, ClusterError) else None


def _of_settings(error: BaseException) -> Report | None:
    if type(error).__module__.partition(".")[0] not in ("pydantic", "pydantic_core", "pydantic_settings"):
        return None
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return Report("SETTINGS", str(error), ExitCode.USAGE)
    # Without the given values: one of them may be a key.
    problems = [
        ".".join(str(part) for part in problem["loc"]) + (": " if problem["loc"] else "") + problem["msg"]
        for problem in error.errors(include_input=False, include_url=False)
    ]
    return Report("SETTINGS", "; ".join(problems), ExitCode.USAGE)


def _of_module(error: BaseException) -> Report | None:
    if not isinstance(error, ModuleNotFoundError) or (error.name or "").startswith("argosy"):
        return None
    message = f'this command needs {error.name}, which is not installed: pip install "argosy[services]"'
    return Report("NOT_INSTALLED", message, ExitCode.FAILED)


def _of_use(error: BaseException) -> Report | None:
    from argosy_services.cli.session import UsageError

    return Report("USAGE", str(error), ExitCode.USAGE) if isinstance(error, UsageError) else None
