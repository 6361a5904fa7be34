"""A libcuda that does nothing, so that Triton's own GPU path runs, up to the launch, on any machine with gcc."""
