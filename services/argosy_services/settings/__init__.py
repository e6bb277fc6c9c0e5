"""Every setting of the servers: from keyword arguments, the environment (ARGOSY_*), a YAML file and defaults, in turn.

Nested settings use two underscores: `ARGOSY_GENERATION__DTYPE=bfloat16`. The file is the one that ARGOSY_CONFIG names.
"""

from argosy_services.settings.adapters import AdapterSettings
from argosy_services.settings.agents import AgentSettings, McpServerSettings
from argosy_services.settings.cluster import ClusterSettings, Replicas
from argosy_services.settings.database import DatabaseSettings
from argosy_services.settings.embeddings import EmbeddingSettings
from argosy_services.settings.fleet import Settings, default_data_dir, is_loopback
from argosy_services.settings.generation import GenerationSettings, TensorRtLlmSettings
from argosy_services.settings.observability import MetricsSettings, TracingSettings
from argosy_services.settings.section import live_fields

__all__ = [
    "AdapterSettings",
    "AgentSettings",
    "ClusterSettings",
    "DatabaseSettings",
    "EmbeddingSettings",
    "GenerationSettings",
    "McpServerSettings",
    "MetricsSettings",
    "Replicas",
    "Settings",
    "TensorRtLlmSettings",
    "TracingSettings",
    "default_data_dir",
    "is_loopback",
    "live_fields",
]
