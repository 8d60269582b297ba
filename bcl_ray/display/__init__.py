"""What a person sees on a terminal or in a notebook: progress, tables, the end of a run."""
