"""A trained model at work: evaluate, predict, export, compare."""
