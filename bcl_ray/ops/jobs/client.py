"""Client of a Ray cluster's Jobs API: address, token, TLS, time limits, and clear errors."""

import difflib
import logging
import os
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from bcl_ray.machine.errors import UserError
from bcl_ray.machine.messages import last_line

TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of an answer
AGENT_SECONDS = 60.0  # for which a cluster that starts may have no agent for jobs
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
CA_FILES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")


def dashboard_address(option: str | None) -> str:
    """The address of a cluster's dashboard, from --address or the environment.

    Raises:
        ValueError: There is no address, or it is not a dashboard's.
    """
    candidates = {"--address": option, **{name: os.environ.get(name) for name in ADDRESSES}}
    name, address = next(((name, text) for name, text in candidates.items() if text), ("", ""))
    if not address:
        raise UserError(
            "which cluster? name its dashboard with --address http://HOST:8265, or set "
            "RAY_API_SERVER_ADDRESS"
        )
    parts = urlsplit(address)
    if "@" in parts.netloc:  # the error must not show the password
        raise UserError(f"{name} holds a user name or a password: a cluster takes a token instead")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"{name} is '{address}', and jobs go to the dashboard: --address http://HOST:8265"
        )
    return address.rstrip("/")


def find_token() -> tuple[str | None, str]:
    """The token, from where Ray itself would take it.

    Returns:
        The token or None, and its origin or where it was looked for.

    Raises:
        OSError: The file in RAY_AUTH_TOKEN_PATH cannot be read.
    """
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return None, f"none, as RAY_AUTH_MODE is {os.environ['RAY_AUTH_MODE']}"
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token, "RAY_AUTH_TOKEN"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    file = Path(path or "~/.ray/auth_token").expanduser()
    try:
        return file.read_text().strip(), str(file)
    except FileNotFoundError:
        if path:
            raise FileNotFoundError(
                f"RAY_AUTH_TOKEN_PATH names {path}, which does not exist: put the cluster's token "
                "there"
            ) from None
        return None, f"none in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or {file}"


class JobClient(JobSubmissionClient):
    """Ray's client of the Jobs API, with time limits, and errors that say what to do.

    Args:
        ca_file: File or folder of certificates to trust; by default those of the environment or of
            the system.

    Raises:
        ValueError: The server at this address is no dashboard.
        OSError: It does not answer, or refuses the token.
    """

    def __init__(self, address: str, ca_file: str | None = None) -> None:
        self.address = address
        token, self.token_origin = find_token()
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        named_files = (os.environ[name] for name in CA_FILES if os.environ.get(name))
        self.ca_file = ca_file or next(named_files, None)
        os.environ[ADDRESSES[0]] = address  # Ray's client prefers it to its argument
        for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
            logging.getLogger(name).setLevel(logging.WARNING)  # they print to the terminal
        try:
            super().__init__(address, headers=dict(self.headers), verify=self.ca_file or True)
        except AuthenticationError:  # Ray's client finds no token, and sends nothing
            raise self._refused(missing=True) from None
        except (KeyError, TypeError, RuntimeError, requests.RequestException):
            raise UserError(
                f"{address} answers, but is no Ray dashboard: name the dashboard, which has port "
                "8265 by default"
            ) from None

    def tls(self) -> ssl.SSLContext | bool:
        """The certificates to trust, as aiohttp takes them."""
        if self.ca_file is None:
            return True
        if Path(self.ca_file).is_dir():  # as `requests` takes it too
            return ssl.create_default_context(capath=self.ca_file)
        return ssl.create_default_context(cafile=self.ca_file)

    def get(self, route: str, **options: Any) -> Any:
        """The JSON that the dashboard answers to GET; `options` go to `requests`.

        Raises:
            ValueError: The answer is no JSON.
            OSError: The dashboard does not answer, or refuses.
        """
        return self._do_request("GET", route, **options).json()

    def send(self, **job: Any) -> None:
        """Submit a job, and wait for a cluster that has just started and takes none yet.

        Args:
            **job: Arguments of `submit_job`.
        """
        end = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                self.submit_job(**job)
                return
            except OSError as error:
                if "No available agent" not in str(error) or time.monotonic() > end:
                    raise
            time.sleep(1)

    def versions(self) -> dict[str, str]:
        """The cluster's versions of Ray and, if the dashboard tells it, of Python.

        The names are those of `bcl_ray.machine.versions.client_versions`.
        """
        versions = {"Ray": str(self.get("/api/version")["ray_version"])}
        try:
            python = self.get("/api/v0/cluster_metadata")["data"]["pythonVersion"]
            versions["Python"] = ".".join(str(python).split(".")[:2])
        except (KeyError, TypeError, ValueError, OSError):
            pass  # the route is undocumented; the job checks again
        return versions

    def job(self, name: str) -> JobDetails:
        """The record of a submitted job.

        Raises:
            ValueError: There is no such job; the error suggests the nearest names.
        """
        try:
            return self.get_job_info(name)
        except RuntimeError:
            raise UserError(
                f"{self.address} knows no job '{name}': {self._suggestion(name)}"
            ) from None

    def is_supervised(self, name: str) -> bool:
        """Whether the actor lives that runs a job's driver and reports its end.

        A head that starts again with its old state lists jobs as running whose drivers died with
        it, until another job is submitted.
        """
        actor = f"_ray_internal_job_actor_{name}"
        query = f"filter_keys=name&filter_predicates=%3D&filter_values={actor}"
        actors = self.get(f"/api/v0/actors?{query}")["data"]["result"]["result"]
        return any(one["state"] != "DEAD" for one in actors)

    def jobs(self) -> list[JobDetails]:
        """All submitted jobs, the newest first."""
        submitted = [job for job in self.list_jobs() if job.submission_id]
        return sorted(submitted, key=lambda job: -(job.start_time or 0))

    def _suggestion(self, name: str) -> str:
        names = [str(job.submission_id) for job in self.jobs()]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        near = near or [other for other in names if name in other][:3]
        if near:
            return f"did you mean {' or '.join(near)}?"
        return f"the latest are {', '.join(names[:3])}" if names else "it has had none yet"

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        """Replaces the method of Ray's client through which all requests go."""
        try:
            answer = super()._do_request(method, endpoint, **{"timeout": TIMEOUT, **options})
        except AuthenticationError as error:
            raise self._refused(missing=str(error).startswith("Authentication required")) from None
        except requests.RequestException as error:
            raise ConnectionError(f"{self.address} {_explain(error)}") from None
        if answer.status_code >= 400 and answer.status_code != 404:  # Ray's client handles 404
            reason = last_line(answer.text, answer.reason)
            raise OSError(f"{self.address} answered {answer.status_code} to {endpoint}: {reason}")
        return answer

    def _refused(self, missing: bool) -> PermissionError:
        if missing:
            return PermissionError(
                f"{self.address} requires a token (401); token on this machine: "
                f"{self.token_origin}; put the cluster's into ~/.ray/auth_token, or set "
                "RAY_AUTH_TOKEN_PATH"
            )
        return PermissionError(
            f"{self.address} does not accept the token of {self.token_origin} (403): it is "
            "another cluster's, or an old one"
        )


def _explain(error: requests.RequestException) -> str:
    """What went wrong with a request, and what to do."""
    text = str(error)
    if isinstance(error, requests.exceptions.SSLError):
        return (
            "has a certificate that is not trusted, or speaks no TLS: name the authority's file "
            "with --ca-file, or use http://"
        )
    if isinstance(error, requests.Timeout):
        return "does not answer in time: is it the right host, and the network open?"
    if "refused" in text:
        return "refuses connections: is the cluster up, and is it the dashboard's port (8265)?"
    if any(words in text for words in ("resolve", "Name or service", "getaddrinfo")):
        return "is a name that cannot be resolved: check its spelling"
    return (
        "closes the connection without an HTTP answer: name the dashboard's port (8265), not Ray's "
        "own (6379)"
    )
