"""What the values of a file mean: tensors, modules, layers, groups, epochs and steps."""
