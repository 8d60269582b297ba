"""`bcl-ray doctor`: checks of everything that a run needs, here and on every node."""
