"""What fits where and what it costs at the least; what this machine has and runs."""
