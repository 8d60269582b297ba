"""Files anywhere: local paths, S3 and other URIs; and who may write where."""
