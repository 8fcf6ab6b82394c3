"""What the tests and the GPU run both ask of a kernel: cases, edges, bounds."""
