"""S3: settings from the environment, errors in plain words, checks, uploads.

pyarrow moves the data that it reads; boto3 does what pyarrow cannot, and is imported when it
is first needed.
"""

from bcl_ray.storage.s3.access import ACTIONS, Passing, check_access
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
from bcl_ray.storage.s3.place import QUICK, Place, client, filesystem, forget, is_s3, place_of
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
    "Passing",
    "Place",
    "StaleUpload",
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
    "patience",
    "place_of",
    "precise",
    "read",
    "read_version",
    "replace_version",
    "stale_uploads",
]
