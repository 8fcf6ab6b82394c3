"""What fits where, and what it costs at the least."""
