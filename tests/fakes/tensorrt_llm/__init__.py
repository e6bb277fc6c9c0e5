"""A stand-in for tensorrt_llm 1.2.1, written from its documentation. It computes nothing, and is strict where the
library is silent: what the library would ignore, leak or mix up lands in `_control.control.violations`.
"""

from tensorrt_llm._llm import PyTorchLLM as LLM
from tensorrt_llm.builder import BuildConfig
from tensorrt_llm.sampling_params import SamplingParams

__version__ = "1.2.1"

__all__ = ["LLM", "BuildConfig", "SamplingParams", "__version__"]
