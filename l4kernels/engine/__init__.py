"""Generation over the model: sequences, KV cache, sampling."""
