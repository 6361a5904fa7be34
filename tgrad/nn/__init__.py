"""Neural network modules, with PyTorch's names, defaults and initialisation."""
