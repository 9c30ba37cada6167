"""Asks rules of a subject and writes down what they say, and what that adds up to."""
