"""One file or folder for each format."""
