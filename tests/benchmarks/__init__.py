"""What is timed: Triton's interpreter, the host code of a launch, and the GPU."""
