"""What an S3 error means: how long it is worth trying again, and what to do about it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bcl_ray.storage.retry import PATIENCE, TransientError
from bcl_ray.storage.s3.location import Location, client

DENIED_PATIENCE = 30.0  # seconds; throttling is sometimes disguised as 403
CHECKSUMS = "AWS_REQUEST_CHECKSUM_CALCULATION"

_ARROW = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))? during (\w+) operation: ?(.*)")
_CURL_FINAL = re.compile(r"curlCode: (1|3|51|58|60|77),")  # not HTTP, malformed, certificates
# Codes as `Fault` has them, of the protocol and of botocore's own exceptions.
_TRANSIENT = {
    "slowdown",
    "throttling",
    "throttlingexception",
    "requestlimitexceeded",
    "bandwidthlimitexceeded",
    "toomanyrequests",
    "serviceunavailable",
    "internalfailure",
    "internalerror",
    "requesttimeout",
    "requesttimeoutexception",
    "networkconnection",
    "operationaborted",
    "conditionalrequestconflict",
    "incompletebody",
    "baddigest",
    "endpointconnectionerror",
    "connecttimeouterror",
    "readtimeouterror",
    "connectionclosederror",
    "connectionerror",
    "proxyconnectionerror",
    "incompletereaderror",
    "responsestreamingerror",
    "httpclienterror",
    "flexiblechecksumerror",
    "protocolerror",
}
_DENIED = {"accessdenied", "allaccessdisabled", "403", "forbidden"}
_CLOCK = {"requesttimetooskewed", "requestexpired"}
_EXPIRED = {"expiredtoken", "tokenrefreshrequired", "expiredtokenexception"}
_CREDENTIALS = {
    "nocredentialserror",
    "partialcredentialserror",
    "credentialretrievalerror",
    "profilenotfound",
    "invalidaccesskeyid",
    "signaturedoesnotmatch",
    "invalidtoken",
    "invalidclienttokenid",
    "unauthorizedssotokenerror",
    "tokenretrievalerror",
}
# A server of credentials that does not answer, as that of an instance or a pod that is starting.
_RETRIEVAL = {"credentialretrievalerror", "tokenretrievalerror"}
_REGION = {"permanentredirect", "authorizationheadermalformed", "301", "illegallocationconstraint"}
_ACTIONS = {  # of the protocol: ours, and the permission's name
    "ListObjectsV2": ("list", "s3:ListBucket"),
    "ListObjects": ("list", "s3:ListBucket"),
    "HeadBucket": ("list", "s3:ListBucket"),
    "GetObject": ("read", "s3:GetObject"),
    "HeadObject": ("read", "s3:GetObject"),
    "PutObject": ("write", "s3:PutObject"),
    "CreateMultipartUpload": ("write", "s3:PutObject"),
    "UploadPart": ("write", "s3:PutObject"),
    "CompleteMultipartUpload": ("write", "s3:PutObject"),
    "DeleteObject": ("delete", "s3:DeleteObject"),
    "DeleteObjects": ("delete", "s3:DeleteObject"),
}


@dataclass(frozen=True)
class Fault:
    """An error of pyarrow or boto3, by the protocol's terms.

    Args:
        code: "slowdown": SlowDown and SLOW_DOWN alike.
        status: of HTTP; 0: not known.
        action: "PutObject"; "": not known.
        text: what was said, in one line.
    """

    code: str
    status: int
    action: str
    text: str


def fault_of(error: BaseException) -> Fault | None:
    """What S3 or the way to it answered; None for an error of something else."""
    text = " ".join(str(error).split())
    response = getattr(error, "response", None)
    if isinstance(response, dict) and "Error" in response:  # boto3's ClientError
        code = str(response["Error"].get("Code", ""))
        status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return Fault(_plain(code), status, getattr(error, "operation_name", ""), text)
    if type(error).__module__.partition(".")[0] in ("botocore", "boto3", "urllib3", "s3transfer"):
        return Fault(_plain(type(error).__name__), 0, "", text)
    if found := _ARROW.search(text):
        code, number, action, said = found.groups()
        if named := re.search(r"ExceptionName: (\w+)", said):
            code = named[1]
        code = "" if code == "UNKNOWN" else code
        return Fault(_plain(code), int(number or 0), action, text)
    return None


def patience(error: BaseException) -> float:
    """Seconds that an error is worth, from the first one on; 0: it will not pass."""
    fault = fault_of(error)
    if fault is None:
        return PATIENCE if isinstance(error, ConnectionError | TimeoutError) else 0.0
    if _CURL_FINAL.search(fault.text):
        return 0.0
    if fault.code in _TRANSIENT or fault.status == 429:
        return PATIENCE
    if fault.status >= 500 and fault.status != 501:
        return PATIENCE
    return DENIED_PATIENCE if fault.code in _DENIED | _RETRIEVAL else 0.0


def brief(error: BaseException) -> str:
    """An error in a word or two, for the log."""
    fault = fault_of(error)
    if fault is None:
        return " ".join(str(error).split()) or type(error).__name__
    if detail := re.search(r"Details: (.*)", fault.text):
        return detail[1]
    named = re.search(r"\((\w+)\) when calling|ExceptionName: (\w+)", fault.text)
    named = named or re.search(r"AWS Error (?!UNKNOWN)(\w+)", fault.text)
    if named:
        return str(next(filter(None, named.groups())))
    return f"HTTP status {fault.status}" if fault.status else _shortened(fault.text)


def precise(error: BaseException, location: Location) -> BaseException:
    """An error itself, or what a listing is told where the answer had no text (to a HEAD)."""
    fault = fault_of(error)
    if fault is None or "No response body" not in fault.text or fault.status >= 500:
        return error
    try:
        client(location).list_objects_v2(Bucket=location.bucket, MaxKeys=1)
    except Exception as clearer:
        found = fault_of(clearer)
        same = found is None or found.code in _DENIED or found.code in _TRANSIENT
        return error if same else clearer
    return error


def explain(error: BaseException, uri: str, location: Location) -> OSError:
    """The same error in plain words: what is wrong with which URI, and what to do."""
    fault = fault_of(error)
    if fault is None:
        return OSError(f"{uri}: {' '.join(str(error).split())}")
    known = fault.code and fault.code not in _TRANSIENT
    said = f"{brief(error)}, {fault.action}" if known and fault.action else _shortened(fault.text)
    text = f"{uri}: {_words(fault, location)} ({said})"
    if fault.code in ("nosuchkey", "nosuchbucket"):
        return FileNotFoundError(text)
    if fault.code in _RETRIEVAL:
        return TransientError(text)
    if fault.code in _DENIED | _CLOCK | _EXPIRED | _CREDENTIALS:
        return PermissionError(text)
    return TransientError(text) if patience(error) else OSError(text)


@contextmanager
def explained(uri: str, location: Location) -> Iterator[None]:
    """Raise S3's errors in plain words."""
    try:
        yield
    except Exception as error:
        if fault_of(error) is None:
            raise
        raise explain(error, uri, location) from error


def _words(fault: Fault, location: Location) -> str:  # noqa: PLR0911 (a table with conditions)
    what, permission = _ACTIONS.get(fault.action, ("use", "the action"))
    if fault.code == "nosuchbucket":
        return (
            f"there is no bucket '{location.bucket}' at {location.server}: create it, or check its "
            "name and AWS_ENDPOINT_URL"
        )
    if fault.code in ("nosuchkey", "resourcenotfound"):
        return "does not exist: check its spelling"
    if fault.code in _EXPIRED:
        return "the credentials' session token has expired: renew it"
    if fault.code in _CLOCK:
        return "this machine's clock is wrong, and S3 refuses what it signs: set it (NTP)"
    if fault.code in _CREDENTIALS:
        return _credentials(fault, location)
    if fault.code in _DENIED:
        return (
            f"access denied, these credentials must not {what} there: allow {permission} in their "
            f"policy or the bucket's, or use others"
        )
    if (fault.status in (411, 501) and what == "write") or "aws-chunked" in fault.text:
        return (
            f"{location.server} does not take the checksums that clients add to uploads: set "
            f"{CHECKSUMS}=when_required on every machine, before the start"
        )
    if fault.code in _REGION or fault.status == 301:
        return f"the bucket is in another region than {location.region}: set AWS_REGION to its own"
    return _unreachable(fault, location)


def _credentials(fault: Fault, location: Location) -> str:
    if fault.code == "invalidaccesskeyid":
        return (
            f"{location.server} does not know the access key: check AWS_ACCESS_KEY_ID "
            "or AWS_PROFILE"
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


def _unreachable(fault: Fault, location: Location) -> str:
    if "resolve" in fault.text.lower():
        return f"{location.server} has no address: check AWS_ENDPOINT_URL and this machine's DNS"
    if _CURL_FINAL.search(fault.text) or fault.code in ("sslerror", "responseparsererror"):
        return (
            f"{location.server} does not answer as an S3 server: check AWS_ENDPOINT_URL, its "
            "scheme (http or https) and port, and AWS_CA_BUNDLE"
        )
    if fault.code == "networkconnection" or fault.code.endswith(
        ("connectionerror", "timeouterror")
    ):
        return f"{location.server} does not answer: check AWS_ENDPOINT_URL, and that it is up"
    if fault.code in _TRANSIENT or fault.status >= 500:
        return f"{location.server} is too busy or broken, and was so each time: try again later"
    if not fault.status:
        return "a setting is wrong: check the AWS_ variables of the environment, and the profile"
    return f"{location.server} refused it: check that AWS_ENDPOINT_URL is an S3 server's"


def _shortened(text: str) -> str:
    text = re.sub(r"\(Request ID: [^)]*\)|: \"https?://[^\"]*\"", "", text).strip()
    return text if len(text) <= 300 else text[:297] + "..."


def _plain(code: str) -> str:
    return code.replace("_", "").lower()
