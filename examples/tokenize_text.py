"""Token ids of a text, each token's place in it, and the way back.

Needs a server: `argosy serve`.
"""

import argosy

TEXT = "Anchors aweigh, señor ⚓"

with argosy.Client() as client:
    encoding = client.tokenization.encode(TEXT, byte_spans=True, tokens=True)
    for token_id, token, (start, end) in zip(encoding.ids, encoding.tokens, encoding.byte_spans, strict=True):
        print(f"{token_id:>6}  {token:<12} bytes {start} to {end}")

    assert client.tokenization.decode(encoding.ids) == TEXT

    tokenizer = client.tokenization.get_tokenizer()
    print(f"{len(encoding.ids)} of {tokenizer.vocabulary_size} tokens; tokenizer {tokenizer.fingerprint[:12]}")

    # A request that names the tokenizer fails if the server has another one by now, instead of giving wrong text.
    client.generation.generate(encoding.ids, max_tokens=1, tokenizer_fingerprint=encoding.tokenizer_fingerprint)

    chat = client.tokenization.render_chat([{"role": "user", "content": "Ahoy"}])
    print(f"a conversation, as the model sees it:\n{chat.text}")
