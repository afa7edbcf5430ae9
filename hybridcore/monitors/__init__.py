"""Built-in monitors, one per file: each watches real steps for one sign of divergence (F32)."""
