"""Scores of videos; a room of its own that knows nothing of sampling."""
