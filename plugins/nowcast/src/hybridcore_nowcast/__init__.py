"""Predictor `nowcast`: a learned network that continues each weight's recent path."""
