"""The method in plain PyTorch: network, losses, training step, metrics."""
