"""Prompt suites as data."""
