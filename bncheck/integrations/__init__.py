"""Where code of the user's own calls bncheck: the guard, and the plugin for pytest."""
