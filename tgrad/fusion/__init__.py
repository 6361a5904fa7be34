"""`tgrad.fuse`: what a function does is recorded with tensors that have no memory, and run as one op."""
