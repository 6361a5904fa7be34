"""`tgrad.cuda.graphed`: a whole step as a CUDA graph."""
