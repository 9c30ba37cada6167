"""What is said: rules, what they find, what was measured, and the report that carries it."""
