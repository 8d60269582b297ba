#!/usr/bin/env bash
# watch-spot.sh SECONDS: wait for EC2 to call this spot instance back, then leave Ray.
#
# EC2 gives two minutes; Ray's own launcher does not listen for them.
set -euo pipefail

seconds=${1:?usage: watch-spot.sh SECONDS}
metadata=${BCL_RAY_METADATA:-http://169.254.169.254}
pause=${BCL_RAY_PAUSE:-5}

called_back() {
  local token
  token=$(curl -sf -m 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' \
    "$metadata/latest/api/token") || return 1
  curl -sf -m 2 -o /dev/null -H "X-aws-ec2-metadata-token: $token" \
    "$metadata/latest/meta-data/spot/instance-action"
}

until called_back; do sleep "$pause"; done
echo "this spot instance is called back"
exec bcl-ray-leave "$seconds"
