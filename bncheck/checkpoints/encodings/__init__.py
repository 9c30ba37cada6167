"""How bytes hold values: pickles, zip archives, protocol buffers, numbers; and how much of them is looked at."""
