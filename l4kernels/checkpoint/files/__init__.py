"""What lies in a checkpoint folder: tensors, their places in the model, how they are quantised."""
