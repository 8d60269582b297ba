"""S3: settings from the environment, retries, explained errors, access checks, uploads.

pyarrow reads data and writes for Ray. boto3 does what pyarrow cannot, and is imported when it is
first needed.
"""

from bcl_ray.storage.s3.access import ACTIONS, TransientProblem, check_access
from bcl_ray.storage.s3.clients import (
    QUICK_ATTEMPTS,
    client,
    filesystem,
    forget_clients,
    patient_filesystem,
)
from bcl_ray.storage.s3.diagnosis import clarify, explain
from bcl_ray.storage.s3.faults import fault_of, retry_seconds, summary
from bcl_ray.storage.s3.location import is_s3, is_same_server, parse_uri
from bcl_ray.storage.s3.objects import (
    create_object,
    list_keys,
    read_object,
    read_version,
    replace_version,
    replaces_atomically,
)
from bcl_ray.storage.s3.uploads import (
    abort_uploads,
    copy_object,
    object_size,
    open_upload,
    stale_uploads,
)

__all__ = [
    "ACTIONS",
    "QUICK_ATTEMPTS",
    "TransientProblem",
    "abort_uploads",
    "check_access",
    "clarify",
    "client",
    "copy_object",
    "create_object",
    "explain",
    "fault_of",
    "filesystem",
    "forget_clients",
    "is_s3",
    "is_same_server",
    "list_keys",
    "object_size",
    "open_upload",
    "parse_uri",
    "patient_filesystem",
    "read_object",
    "read_version",
    "replace_version",
    "replaces_atomically",
    "retry_seconds",
    "stale_uploads",
    "summary",
]
