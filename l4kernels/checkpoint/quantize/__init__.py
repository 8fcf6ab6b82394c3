"""Quantised checkpoints, written in the compressed-tensors format that other engines read, too."""
