"""Llama 4: configuration, checkpoint, text and vision model, generation."""
