"""Models that foretell the loss under an action, and the keeper that feeds and trains one during a run."""
