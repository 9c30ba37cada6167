"""Builds and runs live models. The only package that imports torch, and only when a command needs a model."""
