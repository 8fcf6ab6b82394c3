"""Chat templates, rendered in a process of their own: nothing here imports torch or the package."""

LENGTH_BYTES = 8  # before each job and each reply, little end first
