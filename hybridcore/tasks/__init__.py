"""Built-in tasks on real data that ships in packages."""
