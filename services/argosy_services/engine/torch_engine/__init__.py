"""Our own engine: continuous batching over a paged key-value cache, in torch."""
