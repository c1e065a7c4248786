"""Denoisers in other formats; knows backbones only."""
