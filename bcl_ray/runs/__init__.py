"""What a run leaves in its folder: checkpoints, findings, events."""
