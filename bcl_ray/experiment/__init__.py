"""An experiment: its options, overrides as a person types them, named recipes."""
