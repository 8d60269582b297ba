"""A Ray cluster's Jobs API: address, token, TLS, time limits, and errors in plain words."""

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

TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of an answer
READY = 60.0  # seconds for which a cluster may have no agent that takes jobs
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
CA_FILES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")


def address_of(option: str | None) -> str:
    """The address of a cluster's dashboard: the option, or the environment.

    Raises:
        ValueError: there is none, or one that is not a dashboard's.
    """
    named = [("--address", option), *((name, os.environ.get(name)) for name in ADDRESSES)]
    name, address = next(((name, text) for name, text in named if text), ("", ""))
    if not address:
        raise UserError(
            "which cluster? name its dashboard with --address http://HOST:8265, or set "
            "RAY_API_SERVER_ADDRESS"
        )
    parts = urlsplit(address)
    if "@" in parts.netloc:  # it is not shown
        raise UserError(f"{name} holds a user name or a password: a cluster takes a token instead")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"{name} is '{address}', and jobs go to the dashboard: --address http://HOST:8265"
        )
    return address.rstrip("/")


def token_of() -> tuple[str | None, str]:
    """The token, found as Ray finds it, and where it was found or is missing.

    Raises:
        OSError: the file of RAY_AUTH_TOKEN_PATH cannot be read.
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
    """Ray's client, with time limits and errors that say what to do.

    Args:
        address: http(s)://HOST:PORT of the dashboard.
        ca_file: certificates to trust, else those of the environment or of the system.

    Raises:
        ValueError: the address answers, but is no dashboard.
        OSError: it does not answer, or refuses the token.
    """

    def __init__(self, address: str, ca_file: str | None = None) -> None:
        self.address = address
        token, self.token_place = token_of()
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.ca_file = ca_file or next(filter(None, map(os.environ.get, CA_FILES)), None)
        os.environ[ADDRESSES[0]] = address  # Ray's client takes it before its argument
        for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
            logging.getLogger(name).setLevel(logging.WARNING)  # they set themselves up to print
        try:
            super().__init__(address, headers=dict(self.headers), verify=self.ca_file or True)
        except AuthenticationError:  # Ray wants a token before it asks anybody
            raise self._refused(missing=True) from None
        except (KeyError, TypeError, RuntimeError, requests.RequestException):
            raise UserError(
                f"{address} answers, but is no Ray dashboard: name the dashboard, which has port "
                "8265 where nothing else was set"
            ) from None

    def tls(self) -> ssl.SSLContext | bool:
        """Which certificates are trusted, as aiohttp takes it."""
        return ssl.create_default_context(cafile=self.ca_file) if self.ca_file else True

    def _refused(self, missing: bool) -> PermissionError:
        if missing:
            return PermissionError(
                f"{self.address} wants a token (401), and there is {self.token_place}: put the "
                "cluster's into ~/.ray/auth_token, or set RAY_AUTH_TOKEN_PATH"
            )
        return PermissionError(
            f"{self.address} does not accept the token of {self.token_place} (403): it is "
            "another cluster's, or an old one"
        )

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        try:
            answer = super()._do_request(method, endpoint, **{"timeout": TIMEOUT, **options})
        except AuthenticationError as error:
            raise self._refused(missing=str(error).startswith("Authentication required")) from None
        except requests.RequestException as error:
            raise ConnectionError(f"{self.address} {_plain(error)}") from None
        if answer.status_code >= 400 and answer.status_code != 404:
            last = (answer.text.strip().splitlines() or [answer.reason])[-1]
            raise OSError(f"{self.address} answered {answer.status_code} to {endpoint}: {last}")
        return answer

    def send(self, **job: Any) -> None:
        """Submit a job, as `submit_job` takes it; a cluster that has just begun is waited for."""
        end = time.monotonic() + READY
        while True:
            try:
                self.submit_job(**job)
                return
            except OSError as error:
                if "No available agent" not in str(error) or time.monotonic() > end:
                    raise
            time.sleep(1)

    def versions(self) -> dict[str, str]:
        """Versions of the cluster's Ray, and of its Python where the dashboard tells it.

        As `bcl_ray.machine.versions.client_versions` has them.
        """
        found = {"Ray": str(self._do_request("GET", "/api/version").json()["ray_version"])}
        try:
            data = self._do_request("GET", "/api/v0/cluster_metadata").json()["data"]
            found["Python"] = ".".join(str(data["pythonVersion"]).split(".")[:2])
        except (KeyError, TypeError, ValueError, OSError):
            pass  # an undocumented route; the job itself checks again
        return found

    def job(self, name: str) -> JobDetails:
        """What the cluster knows of a job that was submitted.

        Raises:
            ValueError: there is no such job; the nearest are named.
        """
        try:
            return self.get_job_info(name)
        except RuntimeError:
            raise UserError(
                f"{self.address} knows no job '{name}': {self._nearest(name)}"
            ) from None

    def is_supervised(self, name: str) -> bool:
        """Whether the actor lives that runs a job's driver, and says when it has ended.

        A head that comes back with its old state lists jobs as running whose drivers died with
        it, until it is sent another one.
        """
        actor = f"_ray_internal_job_actor_{name}"
        query = f"filter_keys=name&filter_predicates=%3D&filter_values={actor}"
        answer = self._do_request("GET", f"/api/v0/actors?{query}").json()
        return any(found["state"] != "DEAD" for found in answer["data"]["result"]["result"])

    def jobs(self) -> list[JobDetails]:
        """All jobs that were submitted, the newest first."""
        submitted = [job for job in self.list_jobs() if job.submission_id]
        return sorted(submitted, key=lambda job: -(job.start_time or 0))

    def _nearest(self, name: str) -> str:
        known = [str(job.submission_id) for job in self.jobs()]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        near = near or [other for other in known if name in other][:3]
        if near:
            return f"did you mean {' or '.join(near)}?"
        return f"the latest are {', '.join(known[:3])}" if known else "it has had none yet"


def _plain(error: requests.RequestException) -> str:
    """What went wrong with a request, and what to do."""
    text = str(error)
    if isinstance(error, requests.exceptions.SSLError):
        return (
            "has a certificate that is not trusted, or speaks no TLS: name the authority's file "
            "with --ca-file, or use http://"
        )
    if isinstance(error, requests.Timeout):
        return "does not answer in time: is it the right host, and is the way there open?"
    if "refused" in text:
        return "refuses connections: is the cluster up, and is it the dashboard's port (8265)?"
    if any(words in text for words in ("resolve", "Name or service", "getaddrinfo")):
        return "is a name that cannot be resolved: check its spelling"
    return (
        "closes the connection without an HTTP answer: name the dashboard's port (8265), not Ray's "
        "own (6379)"
    )
