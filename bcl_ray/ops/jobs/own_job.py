"""A job that ends itself as stopped: KubeRay starts a job that failed once more, whatever failed.

A mistake of the user, exit status 2, would come again on every new cluster. KubeRay (1.7) repeats
jobs that Ray calls FAILED, and takes one that Ray calls STOPPED for complete.
"""

import json
import os
import signal
import sys
import time

from ray.job_submission import JobSubmissionClient

MISTAKE = 2  # exit status
PATIENCE = 60.0  # seconds until Ray's signal to stop, which it sends at once


def stop() -> None:
    """Let Ray stop the job that this process is the entry point of; ends the process if it does."""
    job = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")  # Ray's, of every submitted job's driver
    if not job:
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(MISTAKE))
    try:
        name = json.loads(job)["metadata"]["job_submission_id"]
        sys.stderr.write(f"bcl-ray: job {name} is stopped, for it would end so again\n")
        sys.stderr.flush()
        JobSubmissionClient(os.environ["RAY_ADDRESS"]).stop_job(name)
    except Exception as error:  # the first error is the one to be seen
        sys.stderr.write(f"bcl-ray: job was not stopped, and may be started again: {error}\n")
        return
    time.sleep(PATIENCE)  # an end before the signal would be a failure
