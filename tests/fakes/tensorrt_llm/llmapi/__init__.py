from tensorrt_llm.executor.result import CompletionOutput, RequestError, RequestOutput
from tensorrt_llm.llmapi.llm_args import KvCacheConfig, QuantAlgo, QuantConfig
from tensorrt_llm.sampling_params import GuidedDecodingParams, SamplingParams

__all__ = [
    "CompletionOutput",
    "GuidedDecodingParams",
    "KvCacheConfig",
    "QuantAlgo",
    "QuantConfig",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
]
