"""Checkpoints of whole runs: safetensors and JSON, atomic, checked, without pickle (F53, F54)."""
