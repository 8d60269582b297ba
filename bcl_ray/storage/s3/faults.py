"""Errors of S3 clients: what they are, and how long they are retried."""

import re
from dataclasses import dataclass

from bcl_ray.machine.errors import flat_text
from bcl_ray.storage.retry import RETRY_SECONDS

DENIED_RETRY_SECONDS = 30.0  # some stores answer 403 while they throttle

# Codes as in `Fault.code`: those of the protocol, and names of botocore's exceptions.
TRANSIENT = {
    "slowdown", "throttling", "throttlingexception", "requestlimitexceeded",
    "bandwidthlimitexceeded", "toomanyrequests", "serviceunavailable", "internalfailure",
    "internalerror", "requesttimeout", "requesttimeoutexception", "networkconnection",
    "operationaborted", "conditionalrequestconflict", "incompletebody", "baddigest",
    "endpointconnectionerror", "connecttimeouterror", "readtimeouterror", "connectionclosederror",
    "connectionerror", "proxyconnectionerror", "incompletereaderror", "responsestreamingerror",
    "httpclienterror", "flexiblechecksumerror", "protocolerror",
}  # fmt: skip
DENIED = {"accessdenied", "allaccessdisabled", "403", "forbidden"}
# The server that issues an instance's or a pod's credentials may still be starting.
CREDENTIAL_SERVER = {"credentialretrievalerror", "tokenretrievalerror"}

_ARROW_ERROR = re.compile(
    r"AWS Error (\w+)(?: \(HTTP status (\d+)\))? during (\w+) operation: ?(.*)"
)
_PERMANENT_CURL_ERROR = re.compile(r"curlCode: (1|3|51|58|60|77),")  # no HTTP, bad URL, certificate


@dataclass(frozen=True)
class Fault:
    """An error of pyarrow or boto3, in terms of the S3 protocol."""

    code: str  # lower case without underscores: "slowdown" for SlowDown and SLOW_DOWN
    status: int  # HTTP status, 0 if unknown
    action: str  # such as "PutObject", empty if unknown
    text: str  # the error's text in one line

    @property
    def is_permanent_curl_error(self) -> bool:
        """Whether the server cannot be spoken to at all: wrong protocol, URL or certificate."""
        return _PERMANENT_CURL_ERROR.search(self.text) is not None


def fault_of(error: BaseException) -> Fault | None:
    """The fault that an error reports; None for an error that is not of S3 or its network."""
    text = flat_text(error)
    response = getattr(error, "response", None)
    if isinstance(response, dict) and "Error" in response:  # boto3's ClientError
        code = str(response["Error"].get("Code", ""))
        status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return Fault(_normalized(code), status, getattr(error, "operation_name", ""), text)
    if type(error).__module__.partition(".")[0] in ("botocore", "boto3", "urllib3", "s3transfer"):
        return Fault(_normalized(type(error).__name__), 0, "", text)
    if match := _ARROW_ERROR.search(text):
        code, status_text, action, detail = match.groups()
        if exception := re.search(r"ExceptionName: (\w+)", detail):
            code = exception[1]
        code = "" if code == "UNKNOWN" else code
        return Fault(_normalized(code), int(status_text or 0), action, text)
    return None


def code_of(error: BaseException) -> str:
    """The code of an error's fault; empty if there is none."""
    fault = fault_of(error)
    return fault.code if fault else ""


def status_of(error: BaseException) -> int:
    """The HTTP status of an error's fault; 0 if there is none."""
    fault = fault_of(error)
    return fault.status if fault else 0


def retry_seconds(error: BaseException) -> float:
    """How long an error is retried, in seconds; 0 for an error that will not pass."""
    fault = fault_of(error)
    if fault is None:
        return RETRY_SECONDS if isinstance(error, ConnectionError | TimeoutError) else 0.0
    if fault.is_permanent_curl_error:
        return 0.0
    if fault.code in TRANSIENT or fault.status == 429:
        return RETRY_SECONDS
    if fault.status >= 500 and fault.status != 501:
        return RETRY_SECONDS
    return DENIED_RETRY_SECONDS if fault.code in DENIED | CREDENTIAL_SERVER else 0.0


def summary(error: BaseException) -> str:
    """An error in a few words, for the log."""
    fault = fault_of(error)
    if fault is None:
        return flat_text(error) or type(error).__name__
    if detail := re.search(r"Details: (.*)", fault.text):
        return detail[1]
    match = re.search(r"\((\w+)\) when calling|ExceptionName: (\w+)", fault.text)
    match = match or re.search(r"AWS Error (?!UNKNOWN)(\w+)", fault.text)
    if match:
        return str(next(filter(None, match.groups())))
    return f"HTTP status {fault.status}" if fault.status else shortened(fault.text)


def shortened(text: str) -> str:
    """An error's text without request IDs and URLs, at most 300 characters."""
    text = re.sub(r"\(Request ID: [^)]*\)|: \"https?://[^\"]*\"", "", text).strip()
    return text if len(text) <= 300 else text[:297] + "..."


def _normalized(code: str) -> str:
    return code.replace("_", "").lower()
