#!/usr/bin/env bash
# stop-drivers.sh SECONDS: end the drivers on this node, each with a last checkpoint.
#
# Runs as the preStop hook of the head's pod. A driver that gets SIGTERM lets its workers cut a
# checkpoint, marks its MLflow run as killed, and ends; after so many seconds we wait no longer.
set -euo pipefail

seconds=${1:?usage: stop-drivers.sh SECONDS}
end=$((SECONDS + seconds))
drivers='^\S*python\S* (\S*/bin/bcl-ray|\S*jobs/[a-z]+\.py) '
pkill -TERM -f "$drivers" || exit 0  # there are none
while ((SECONDS < end)) && pgrep -f "$drivers" >/dev/null; do sleep 1; done
