"""A whole cluster on one machine, of real processes, for trying things out and for tests."""
