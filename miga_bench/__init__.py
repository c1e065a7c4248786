"""Long, consistent videos from short-clip video diffusion models."""

__version__ = "0.1.0"
