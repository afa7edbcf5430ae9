"""Built-in controllers, one per file."""
