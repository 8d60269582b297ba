#!/usr/bin/env python3
"""stop-jobs SECONDS: stop all jobs of this head, and wait for their last checkpoints.

Runs as the preStop hook of the head's pod. By Ray's Jobs API and not by signals: a job that is
being stopped already, since its RayJob is deleted, would take a second signal as "at once".
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

DASHBOARD = os.environ.get("BCL_RAY_DASHBOARD", "http://127.0.0.1:8265")
OVER = ("SUCCEEDED", "FAILED", "STOPPED")


def token() -> str:
    """Ray's token, from where Ray takes it."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")
    given = os.environ.get("RAY_AUTH_TOKEN")
    return given or Path(path).expanduser().read_text(encoding="utf-8").strip()


def ask(path: str, method: str = "GET") -> Any:
    """What the dashboard answers."""
    request = Request(DASHBOARD + path, method=method)  # noqa: S310  a constant scheme
    request.add_header("Authorization", f"Bearer {token()}")
    with urlopen(request, timeout=10) as answer:  # noqa: S310
        return json.load(answer)


def running() -> list[str]:
    """Names of submitted jobs that are not over."""
    jobs = [job for job in ask("/api/jobs/") if job.get("submission_id")]
    return [job["submission_id"] for job in jobs if job["status"] not in OVER]


def main() -> None:
    """Stop, then wait no longer than there is time."""
    end = time.monotonic() + int(sys.argv[1])
    try:
        for name in running():
            ask(f"/api/jobs/{name}/stop", "POST")
        while time.monotonic() < end and running():
            time.sleep(1)
    except (URLError, OSError, ValueError) as error:  # a Ray that is gone has no jobs
        sys.stderr.write(f"jobs were not stopped: {error}\n")


if __name__ == "__main__":
    main()
