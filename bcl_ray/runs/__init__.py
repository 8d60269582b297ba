"""What a run leaves in its folder: identity, checkpoints, findings, logs and events."""
