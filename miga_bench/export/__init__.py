"""Denoisers, autoencoders and text encoders outside of PyTorch: written, checked and run as graphs."""
