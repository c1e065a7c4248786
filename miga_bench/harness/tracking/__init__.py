"""A run told to MLflow while it is made, and afterwards by ``miga-bench sync``."""
