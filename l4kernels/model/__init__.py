"""Llama 4: configuration, and the forward pass of the text and the vision model."""
