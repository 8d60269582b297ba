"""MLflow: runs, models, the registry, its server."""
