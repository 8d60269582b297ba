"""Label images with a trained model."""
