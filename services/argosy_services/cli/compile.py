"""`argosy compile`: a model of the store becomes a TensorRT-LLM engine."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from argosy_services.engine.tensorrt_llm.compiler import Report, Step


class Quantization(enum.StrEnum):
    """Types of weights and cache."""

    NONE = "none"
    FP8 = "fp8"


def compile_model(
    model: Annotated[str, typer.Argument(help="Name of a model in the store.")],
    *,
    gpu: Annotated[str, typer.Option(help="GPU that will run it, such as h200; this machine must have one.")],
    max_batch_size: Annotated[int, typer.Option(help="Most sequences in one step.", min=1, max=4096)] = 64,
    max_input_len: Annotated[int, typer.Option(help="Longest prompt in tokens; 0: all of the sequence.", min=0)] = 0,
    max_seq_len: Annotated[int, typer.Option(help="Longest sequence in tokens; 0: the model's own.", min=0)] = 0,
    max_num_tokens: Annotated[int, typer.Option(help="Most tokens that one step computes.", min=1)] = 8192,
    quantization: Annotated[Quantization, typer.Option(help="Type of weights and cache.")] = Quantization.NONE,
    tensor_parallel_size: Annotated[int, typer.Option(help="GPUs that share the model.", min=1, max=64)] = 1,
    lora_max_rank: Annotated[int, typer.Option(help="Largest LoRA rank; 0: no adapters.", min=0, max=512)] = 64,
    logprobs: Annotated[
        bool, typer.Option("--logprobs", help="Keep logits, for log-probabilities and scoring; costs memory.")
    ] = False,
    engines_dir: Annotated[
        Path | None, typer.Option(help="Where engines are kept.", show_default="DATA_DIR/engines")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where models are kept.", show_default="~/.local/share/argosy")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compile a model for TensorRT-LLM and print the engine's directory. What is compiled already is not done again.

    Safe to interrupt, to repeat and to run in several processes at once.
    """
    from argosy_services import logs
    from argosy_services.cli.output import size, stdout, write_json
    from argosy_services.cli.session import UsageError
    from argosy_services.engine.tensorrt_llm import compiler, device
    from argosy_services.engine.tensorrt_llm.library import load_library
    from argosy_services.models.store import ModelStore
    from argosy_services.settings import Settings

    if gpu not in device.GPUS:
        raise UsageError(f"--gpu {gpu} is not known; known: {', '.join(device.GPUS)}")
    settings = Settings(data_dir=data_dir) if data_dir is not None else Settings()
    logs.configure("warning", "console")
    local = ModelStore(settings.models_dir).get(model)
    build = compiler.build_for(
        local,
        gpu,
        quantization=quantization.value,
        max_batch_size=max_batch_size,
        max_input_len=max_input_len,
        max_seq_len=max_seq_len,
        max_num_tokens=max_num_tokens,
        tensor_parallel_size=tensor_parallel_size,
        lora_max_rank=lora_max_rank,
        logprobs=logprobs,
    )
    library = load_library()
    root = engines_dir.expanduser().absolute() if engines_dir is not None else settings.data_dir / "engines"
    with _bar(local.name) as report:
        directory, manifest = compiler.compile_engine(library, local, gpu, build, root=root, report=report)
    if as_json:
        write_json(
            {"directory": directory, "size_bytes": manifest.size_bytes, "hash": manifest.hash, "key": manifest.key}
        )
        return
    stdout().print(f"{local.name}: {size(manifest.size_bytes)} in {directory}", soft_wrap=True, markup=False)


@contextmanager
def _bar(name: str) -> Iterator[Report]:
    """One progress bar on standard error; without a terminal, as in a cluster's job, one line for each step."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    from argosy_services.cli.output import stderr

    console = stderr()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(name, total=None)
        seen: Step | None = None

        def report(step: Step, done: int, total: int) -> None:
            nonlocal seen
            if step is not seen:
                seen = step
                bars.reset(task, description=f"{name}: {step}", total=total or None)
                if not console.is_terminal:
                    console.print(f"{name}: {step}", markup=False)
            bars.update(task, completed=done, total=total or None)

        yield report
