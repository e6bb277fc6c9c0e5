"""Engines that turn token ids into token ids. They know nothing about text, gRPC or where models come from."""
