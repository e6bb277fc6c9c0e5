"""Text generation: from a prompt in any form to text, over an engine that only knows token ids."""
