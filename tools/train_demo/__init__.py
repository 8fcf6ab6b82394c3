"""Train the demo checkpoint of l4kernels from nothing: `python -m tools.train_demo`."""
