"""Callbacks for loops that other libraries own; each module imports its library, and only its own."""
