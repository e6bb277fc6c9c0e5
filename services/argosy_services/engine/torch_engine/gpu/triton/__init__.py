"""The kernels in Triton. Whoever imports a module of it imports Triton, which torch's builds for CUDA bring along."""
