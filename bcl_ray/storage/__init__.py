"""Files anywhere (local paths, S3 and other URIs), and leases that decide who may write."""
