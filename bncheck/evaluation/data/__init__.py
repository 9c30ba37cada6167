"""Batches from images, arrays, or a callable of the user's."""
