from tensorrt_llm._llm import CompiledLLM as LLM

__all__ = ["LLM"]
