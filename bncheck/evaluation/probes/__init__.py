"""The passes over the data: each answers one question about a model."""
