"""Predictor `ema-drift`, a worked example of a hybridcore plugin."""
