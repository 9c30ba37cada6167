"""What is seen of a model while it runs."""
