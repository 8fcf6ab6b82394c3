"""CUDA programs on the emulator: `l4k emulate`. Imports nothing outside Python, and no torch."""
