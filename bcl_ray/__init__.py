"""Balanced Contrastive Learning for long-tailed images, on a Ray cluster."""

__version__ = "0.1.0"
