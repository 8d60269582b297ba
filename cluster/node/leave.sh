#!/usr/bin/env bash
# leave.sh SECONDS: tell Ray that this node ends in so many seconds, and wait for its Train workers.
#
# Ray Train passes the notice on to its workers, which cut a checkpoint and go on without the
# node. Runs as the preStop hook of worker pods, and on EC2 when a spot instance is called back.
set -euo pipefail

seconds=${1:?usage: leave.sh SECONDS}
end=$((SECONDS + seconds))
address=${RAY_ADDRESS:-}
# With a Ray that is gone already there is nobody to tell.
timeout 20 ray drain-node ${address:+--address "$address"} \
  --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "the node is ending" \
  --deadline-remaining-seconds "$seconds" || echo "Ray was not told: $?" >&2

# [r]ay: a pattern that does not match its own command line.
while ((SECONDS < end)) && pgrep -f '^[r]ay::RayTrainWorker' >/dev/null; do sleep 1; done
