"""Explanations of S3 errors: what is wrong with which URI, and what to do about it."""

from collections.abc import Iterator
from contextlib import contextmanager

from bcl_ray.machine.errors import flat_text
from bcl_ray.storage.retry import TransientError
from bcl_ray.storage.s3.clients import client
from bcl_ray.storage.s3.faults import (
    CREDENTIAL_SERVER,
    DENIED,
    TRANSIENT,
    Fault,
    fault_of,
    retry_seconds,
    shortened,
    summary,
)
from bcl_ray.storage.s3.location import Location

CHECKSUMS = "AWS_REQUEST_CHECKSUM_CALCULATION"

WRONG_CLOCK = {"requesttimetooskewed", "requestexpired"}
_EXPIRED = {"expiredtoken", "tokenrefreshrequired", "expiredtokenexception"}
_CREDENTIALS = CREDENTIAL_SERVER | {
    "nocredentialserror", "partialcredentialserror", "profilenotfound", "invalidaccesskeyid",
    "signaturedoesnotmatch", "invalidtoken", "invalidclienttokenid", "unauthorizedssotokenerror",
}  # fmt: skip
_WRONG_REGION = {
    "permanentredirect", "authorizationheadermalformed", "301", "illegallocationconstraint",
}  # fmt: skip
# The protocol's actions: our name, and the permission in a policy.
_ACTIONS = {
    "ListObjectsV2": ("list", "s3:ListBucket"),
    "ListObjects": ("list", "s3:ListBucket"),
    "HeadBucket": ("list", "s3:ListBucket"),
    "GetObject": ("read", "s3:GetObject"),
    "HeadObject": ("read", "s3:GetObject"),
    "PutObject": ("write", "s3:PutObject"),
    "CreateMultipartUpload": ("write", "s3:PutObject"),
    "UploadPart": ("write", "s3:PutObject"),
    "CopyObject": ("write", "s3:PutObject"),
    "UploadPartCopy": ("write", "s3:PutObject"),
    "CompleteMultipartUpload": ("write", "s3:PutObject"),
    "DeleteObject": ("delete", "s3:DeleteObject"),
    "DeleteObjects": ("delete", "s3:DeleteObject"),
}


def clarify(error: BaseException, location: Location) -> BaseException:
    """Replace an error whose response had no text (to a HEAD request) by that of a list request.

    Returns:
        The error itself where a list request gives no clearer one.
    """
    fault = fault_of(error)
    if fault is None or "No response body" not in fault.text or fault.status >= 500:
        return error
    try:
        client(location).list_objects_v2(Bucket=location.bucket, MaxKeys=1)
    except Exception as other:
        clearer = fault_of(other)
        if clearer is not None and clearer.code not in DENIED | TRANSIENT:
            return other
    return error


@contextmanager
def explained_faults(uri: str, location: Location) -> Iterator[None]:
    """Raise S3 errors of the block as those of `explain`; other errors pass unchanged."""
    try:
        yield
    except Exception as error:
        if fault_of(error) is None:
            raise
        raise explain(error, uri, location) from error


def explain(error: BaseException, uri: str, location: Location) -> OSError:
    """An error with a text that says what is wrong with the URI, and what to do.

    Returns:
        A FileNotFoundError, TransientError, PermissionError or another OSError.
    """
    fault = fault_of(error)
    if fault is None:
        return OSError(f"{uri}: {flat_text(error)}")
    has_code = fault.code and fault.code not in TRANSIENT and fault.action
    detail = f"{summary(error)}, {fault.action}" if has_code else shortened(fault.text)
    text = f"{uri}: {_explanation(fault, location)} ({detail})"
    if fault.code in ("nosuchkey", "nosuchbucket"):
        return FileNotFoundError(text)
    if fault.code in CREDENTIAL_SERVER:
        return TransientError(text)
    if fault.code in DENIED | WRONG_CLOCK | _EXPIRED | _CREDENTIALS:
        return PermissionError(text)
    return TransientError(text) if retry_seconds(error) else OSError(text)


def _explanation(fault: Fault, location: Location) -> str:  # noqa: PLR0911 (a table with conditions)
    verb, permission = _ACTIONS.get(fault.action, ("use", "the action"))
    if fault.code == "nosuchbucket":
        return (
            f"there is no bucket '{location.bucket}' at {location.server}: create it, or check its "
            "name and AWS_ENDPOINT_URL"
        )
    if fault.code in ("nosuchkey", "resourcenotfound"):
        return "does not exist: check its spelling"
    if fault.code in _EXPIRED:
        return "the credentials' session token has expired: renew it"
    if fault.code in WRONG_CLOCK:
        return "this machine's clock is wrong, and S3 refuses its signatures: set it (NTP)"
    if fault.code in _CREDENTIALS:
        return _explain_credentials(fault, location)
    if fault.code in DENIED:
        return (
            f"access denied, these credentials must not {verb} there: allow {permission} in their "
            "policy or the bucket's, or use others"
        )
    if (fault.status in (411, 501) and verb == "write") or "aws-chunked" in fault.text:
        return (
            f"{location.server} does not accept the checksums that clients add to uploads: set "
            f"{CHECKSUMS}=when_required on every machine, before the start"
        )
    if fault.code in _WRONG_REGION or fault.status == 301:
        return f"the bucket is not in region {location.region}: set AWS_REGION to the bucket's"
    return _explain_server(fault, location)


def _explain_credentials(fault: Fault, location: Location) -> str:
    if fault.code == "invalidaccesskeyid":
        return (
            f"{location.server} does not know the access key: check AWS_ACCESS_KEY_ID or "
            "AWS_PROFILE"
        )
    if fault.code == "signaturedoesnotmatch":
        return (
            "the secret key is wrong: check AWS_SECRET_ACCESS_KEY or AWS_PROFILE, and that "
            f"{location.server} is the server that they are for"
        )
    if fault.code == "invalidtoken":
        return "the credentials' session token is wrong: check AWS_SESSION_TOKEN, or renew it"
    return (
        "no credentials were found on this machine: set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give it a role"
    )


def _explain_server(fault: Fault, location: Location) -> str:
    server = location.server
    if "resolve" in fault.text.lower():
        return f"{server} has no address: check AWS_ENDPOINT_URL and this machine's DNS"
    if fault.is_permanent_curl_error or fault.code in ("sslerror", "responseparsererror"):
        return (
            f"{server} does not answer as an S3 server: check AWS_ENDPOINT_URL, its scheme (http "
            "or https) and port, and AWS_CA_BUNDLE"
        )
    if fault.code.endswith(("connectionerror", "timeouterror")) or (
        fault.code == "networkconnection"
    ):
        return f"{server} does not answer: check AWS_ENDPOINT_URL, and that it is up"
    if fault.code in TRANSIENT or fault.status >= 500:
        return f"{server} is too busy or broken, and was so each time: try again later"
    if not fault.status:
        return "a setting is wrong: check the AWS_ variables of the environment, and the profile"
    return f"{server} refused the request: check that AWS_ENDPOINT_URL is an S3 server's"
