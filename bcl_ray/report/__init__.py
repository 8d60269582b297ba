"""What a person reads of a run: figures, tables, the report."""
