"""The model store: from a source URI to a verified directory on this machine."""
