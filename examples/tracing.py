"""A call as part of this program's own trace. Its spans are printed here; the server's go to its collector.

Needs a server: `argosy serve`, with ARGOSY_TRACING__ENDPOINT set to see the rest of the trace (docs/tracing.md).
"""

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

import argosy

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=lambda span: f"{span.name}\n")))
trace.set_tracer_provider(provider)

with argosy.Client(trace=True) as client, trace.get_tracer("example").start_as_current_span("a question") as span:
    print("trace", f"{span.get_span_context().trace_id:032x}")
    run = client.agents.run("What is 17 * 23 + 4?", tools=["calculator"])
    run.result()
    print("answer:", run.answer)
