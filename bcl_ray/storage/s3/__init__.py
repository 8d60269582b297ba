"""S3: settings from the environment, errors in plain words, checks, uploads.

pyarrow moves the data that it reads; boto3 does what pyarrow cannot, and is imported when it
is first needed.
"""

from bcl_ray.storage.s3.access import ACTIONS, TransientProblem, check_access
from bcl_ray.storage.s3.faults import (
    CHECKSUMS,
    Fault,
    brief,
    explain,
    explained,
    fault_of,
    patience,
    precise,
)
from bcl_ray.storage.s3.listing import keys
from bcl_ray.storage.s3.location import (
    QUICK,
    Location,
    client,
    filesystem,
    forget,
    is_s3,
    parse_uri,
)
from bcl_ray.storage.s3.swap import ChangedError, Version, compares, read_version, replace_version
from bcl_ray.storage.s3.uploads import (
    StaleUpload,
    Upload,
    abort_uploads,
    create,
    read,
    stale_uploads,
)

__all__ = [
    "ACTIONS",
    "CHECKSUMS",
    "QUICK",
    "ChangedError",
    "Fault",
    "Location",
    "StaleUpload",
    "TransientProblem",
    "Upload",
    "Version",
    "abort_uploads",
    "brief",
    "check_access",
    "client",
    "compares",
    "create",
    "explain",
    "explained",
    "fault_of",
    "filesystem",
    "forget",
    "is_s3",
    "keys",
    "parse_uri",
    "patience",
    "precise",
    "read",
    "read_version",
    "replace_version",
    "stale_uploads",
]
