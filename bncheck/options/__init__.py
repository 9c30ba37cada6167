"""What can be asked for: each option is one field of a dataclass, and every door follows from it."""
