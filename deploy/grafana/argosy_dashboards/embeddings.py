"""How full are the batches of texts, and does text wait to be cut into tokens?"""

from argosy_dashboards.board import Board, Panel, Row
from argosy_dashboards.queries import Query, mean, quantiles, rate

_EMBEDDINGS = 'service=~".*EmbeddingsService"'
_TOKENIZATION = 'service=~".*TokenizationService"'

BOARD = Board(
    uid="argosy-embeddings",
    title="Argosy / Embeddings and tokenization",
    description="Throughput, batch fill and latency of the services that stream no text.",
    rows=(
        Row(
            "Embeddings",
            (
                Panel(
                    "Texts embedded",
                    "How many texts become vectors each second?",
                    "Falling with calls in progress: batches became fuller of longer texts, see the panel beside.",
                    (Query(rate("argosy_embedded_texts_total", by="model"), "{{model}}"),),
                    unit="ops",
                ),
                Panel(
                    "Tokens in a batch",
                    "Are batches worth their step?",
                    "Far below embeddings.max_batch_tokens: callers send one text a call; let them send lists.",
                    (Query(mean("argosy_embedding_batch_tokens", by="model"), "mean {{model}}"),),
                ),
                Panel(
                    "Duration of embedding calls",
                    "How long do callers wait for vectors?",
                    "Long calls of many texts are as they should be; long calls of one text are a queue.",
                    quantiles("argosy_rpc_seconds", _EMBEDDINGS),
                    unit="s",
                ),
            ),
        ),
        Row(
            "Tokenization",
            (
                Panel(
                    "Texts encoded, decoded or counted",
                    "How much text goes through the tokenizers?",
                    "Callers that count tokens before each call can read usage from the answer instead.",
                    (Query(rate("argosy_tokenized_texts_total", by="model"), "{{model}}"),),
                    unit="ops",
                    width=12,
                ),
                Panel(
                    "Duration of tokenization calls",
                    "Does text wait for a core?",
                    "Tokenizers share cores with the engine in `argosy serve`; on Ray give them replicas of their own.",
                    quantiles("argosy_rpc_seconds", _TOKENIZATION),
                    unit="s",
                    width=12,
                ),
            ),
        ),
    ),
)
