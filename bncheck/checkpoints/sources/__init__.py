"""Where the bytes of a checkpoint come from."""
