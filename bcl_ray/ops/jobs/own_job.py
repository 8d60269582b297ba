"""How a job ends itself as stopped, so that KubeRay does not repeat a mistake of the user.

KubeRay (1.7) repeats jobs that Ray calls FAILED, on a new cluster each time, whatever the exit
status. A job that Ray calls STOPPED counts as complete.
"""

import json
import os
import signal
import sys
import time

from ray.job_submission import JobSubmissionClient

from bcl_ray.machine.errors import USER_MISTAKE
from bcl_ray.machine.messages import notify

PATIENCE = 60.0  # seconds until Ray's stop signal, which comes at once


def stop() -> None:
    """Stop the job whose entry point this process is; the process ends with Ray's signal.

    Returns if this process belongs to no job, or Ray does not stop it.
    """
    job = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")  # Ray sets it for a submitted job's driver
    if not job:
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(USER_MISTAKE))
    try:
        name = json.loads(job)["metadata"]["job_submission_id"]
        notify(f"job {name} is stopped, for it would fail again in the same way")
        JobSubmissionClient(os.environ["RAY_ADDRESS"]).stop_job(name)
    except Exception as error:  # it must not replace the user's own error
        notify(f"job was not stopped, and may be started again: {error}")
        return
    time.sleep(PATIENCE)  # an exit before the signal would count as a failure
