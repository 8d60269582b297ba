"""What a run needs, looked at part by part: each is in order, or says what to do."""
