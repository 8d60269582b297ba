"""Progress, tables and results on a terminal or in a notebook."""
