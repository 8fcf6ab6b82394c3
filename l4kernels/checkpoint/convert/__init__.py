"""Other forms of checkpoints, written anew as folders that can be loaded."""
