"""Contracts and fixtures that third parties can run against their own plugins."""
