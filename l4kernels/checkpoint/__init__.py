"""Published checkpoints: reading, where each tensor goes, loading."""
