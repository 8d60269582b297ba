#!/usr/bin/env bash
# Build the image and use it as a stranger does: `make test-image` (root; Debian's buildah, podman,
# crun, debootstrap; 20 GB of disk for DEVICE=gpu; ten minutes and more).
#
# In it, a user whose number nobody knows, on a root that is read only and without capabilities:
# doctor, shard, train, evaluate, predict, export and report must work, and write nowhere but to
# /tmp, HOME, /dev/shm and the folder that they are given.
#
#   DEVICE         cpu or gpu
#   BUILD_OPTIONS  of `buildah build`: what its network needs, such as -v FILE:/etc/pip.conf:ro
#   FOLDER         keeps images and layers for the next time; otherwise nothing is left
set -euo pipefail
cd "$(dirname "$0")/../.."

device=${DEVICE:-cpu}
base=docker.io/library/python:3.11-slim-bookworm
image=localhost/bcl-ray:test-$device
commit=$(git describe --always --dirty --abbrev=40)

folder=${FOLDER:-$(mktemp -d "${TMPDIR:-/tmp}/bcl-ray-image-XXXXXX")}
export CONTAINERS_STORAGE_CONF=$folder/storage.conf TMPDIR=$folder/tmp
mkdir -p "$TMPDIR"
printf '[storage]\ndriver="overlay"\ngraphroot="%s/storage"\nrunroot="%s/run"\n' \
  "$folder" "$folder" >"$CONTAINERS_STORAGE_CONF"
clean() {
  rm -rf "$folder/work"
  [ -n "${FOLDER:-}" ] && return
  podman rm --all --force >/dev/null 2>&1 || true
  podman rmi --all --force >/dev/null 2>&1 || true
  umount "$folder/storage/overlay" 2>/dev/null || true  # while layers are used they are mounted
  rm -rf --one-file-system "$folder"
}
trap clean EXIT
trap 'echo "image.sh: line $LINENO failed" >&2' ERR

say() { printf '\n== %s\n' "$*"; }

say "base: $base"
if ! podman image exists "$base" && ! timeout 120 podman pull --quiet "$base" 2>"$folder/pull.log"; then
  echo "it cannot be pulled ($(tail -1 "$folder/pull.log" | cut -c1-200)): Debian and its Python instead"
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
    bookworm "$folder/root" http://deb.debian.org/debian >"$folder/debootstrap.log"
  ln -s python3 "$folder/root/usr/bin/python"
  tar --directory "$folder/root" --create . | podman import --quiet - "$base"
  rm -rf "$folder/root"
fi

say "build for $device, of $commit"
# shellcheck disable=SC2086  # options, split at blanks
buildah build --isolation chroot --pull-never --layers --file cluster/Dockerfile \
  --ignorefile cluster/Dockerfile.dockerignore --build-arg DEVICE="$device" \
  --build-arg COMMIT="$commit" --tag "$image" ${BUILD_OPTIONS:-} . >"$folder/build.log" 2>&1 ||
  { tail -40 "$folder/build.log" >&2; exit 1; }
buildah images "$image"

# A machine need not let containers have control groups, namespaces of networks, or more open files.
files=$(ulimit -n)
run() {
  local options=(--rm --cgroups=disabled --network=host --pull=never --cap-drop=all
    --security-opt=no-new-privileges --ulimit "nofile=$files:$files" --ulimit nproc=20000:20000)
  # crun refuses a machine that has both versions of control groups: it is not shown the second one.
  # shellcheck disable=SC2016
  unshare --mount bash -c 'umount /sys/fs/cgroup/unified 2>/dev/null || true; exec podman run "$@"' - \
    "${options[@]}" "$@"
}
strange=(--user 54321:0 --passwd=false --read-only --read-only-tmpfs=false --shm-size 2g
  --tmpfs "/tmp:rw,mode=1777,size=8g" --tmpfs "/home/ray:rw,mode=1777"
  --volume "$folder/work:/work" --workdir /work)
mkdir --mode=1777 "$folder/work"

say "its own user"
# shellcheck disable=SC2016  # here and below: for the shell in there
run "$image" sh -euc '
  test "$(id -un):$(id -gn):$HOME" = ray:ray:/home/ray
  touch "$HOME/x" /var/lib/mlflow/x
  for name in bcl-ray ray mlflow python curl pgrep rsync ssh wget bcl-ray-leave bcl-ray-stop-jobs \
    bcl-ray-watch-spot; do command -v "$name"; done
  pip check'
run "$image" bcl-ray --help >/dev/null

say "a user that nobody knows, on a root that is read only"
run "${strange[@]}" "$image" bcl-ray doctor
echo "... and with too little shared memory, which doctor must find:"
if run "${strange[@]}" --shm-size 64m "$image" bcl-ray doctor; then exit 1; fi
run "${strange[@]}" "$image" sh -euxc '
  ! touch /opt/venv/x /usr/local/x
  bcl-ray shard digits data/digits_lt --profile exponential --imbalance-factor 50
  bcl-ray train digits_lt train.epochs=2 tracking.run=one
  bcl-ray evaluate one
  bcl-ray predict one data/digits_lt labels --csv
  bcl-ray export one model.safetensors
  bcl-ray report one'
for file in one/report.html one/predictions.parquet mlflow.db; do test -s "$folder/work/runs/$file"; done
test "$(find "$folder/work/runs/one" -type d -name 'checkpoint_*' | wc -l)" = 2
run "${strange[@]}" --env COMMIT="$commit" "$image" python -c '
import os
from mlflow import MlflowClient
(run,) = MlflowClient("sqlite:////work/runs/mlflow.db").search_runs(["1"])
assert run.info.status == "FINISHED", run.info
assert "model.uri" in run.data.tags, run.data.tags
assert run.data.tags["git.commit"] == os.environ["COMMIT"], run.data.tags
print("MLflow has the run, its model, and the commit", run.data.tags["git.commit"])'

say "without a home that can be written to, which must be said"
if run --user 54321:0 --passwd=false --read-only --read-only-tmpfs=false --tmpfs /tmp:rw,mode=1777 \
  --shm-size 2g --volume "$folder/work:/work" --workdir /work \
  "$image" bcl-ray train digits_lt tracking.run=two 2>"$folder/said"; then exit 1; fi
grep "set HOME to a folder" "$folder/said"

say "the image is built, and works"
