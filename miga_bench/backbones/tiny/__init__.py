"""The embedded world and the tiny models trained on it."""
