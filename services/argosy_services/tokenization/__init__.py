"""Text to token ids and back. The core is a library that generation and embeddings call; the service is for callers."""
