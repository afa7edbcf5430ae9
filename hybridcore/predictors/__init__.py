"""Built-in predictors, one per file."""
