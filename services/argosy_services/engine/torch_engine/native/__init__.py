"""A decoder step on CPU cores as machine code that is made when the engine starts; docs/adr/0013 says why and how."""
