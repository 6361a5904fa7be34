"""What autograd and the grad modes promise: each statement is a snippet that runs on torch and on tgrad."""
