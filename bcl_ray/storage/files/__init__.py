"""Files anywhere: a local path, s3:// or any other URI that pyarrow opens.

Every function retries for minutes while S3 throttles or does not answer, and while a local disk is
full, with a warning in the log (bcl_ray.storage). Elsewhere, on gs:// and hdfs://, only pyarrow
retries, in its own way. Faults that last, or that will not pass, raise FileNotFoundError,
PermissionError or another OSError whose text names the URI and says what to do. For the settings
and credentials of S3 see `storage.s3.clients`.
"""

from bcl_ray.storage.files.contents import (
    NoFileError,
    copy,
    create_bytes,
    delete,
    delete_folder,
    open_write,
    read_bytes,
    read_listed,
    write_bytes,
)
from bcl_ray.storage.files.errors import explain_errors, with_retries
from bcl_ray.storage.files.filesystems import (
    atomic_filesystem,
    check_usable,
    resolve,
    with_filesystem,
)
from bcl_ray.storage.files.listing import check_file, exists, list_files, list_folders, walk
from bcl_ray.storage.paths import file_in, join

__all__ = [
    "NoFileError",
    "atomic_filesystem",
    "check_file",
    "check_usable",
    "copy",
    "create_bytes",
    "delete",
    "delete_folder",
    "exists",
    "explain_errors",
    "file_in",
    "join",
    "list_files",
    "list_folders",
    "open_write",
    "read_bytes",
    "read_listed",
    "resolve",
    "walk",
    "with_filesystem",
    "with_retries",
    "write_bytes",
]
