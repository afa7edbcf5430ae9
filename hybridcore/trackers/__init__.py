"""Built-in trackers, one per file."""
