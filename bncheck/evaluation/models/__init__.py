"""A model that can be run, from a checkpoint or the code that the user named."""
