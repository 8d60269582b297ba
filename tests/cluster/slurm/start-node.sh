#!/usr/bin/env bash
# Starts a node: Linux namespaces with an address, a name, processes and control groups of their own.
set -euo pipefail
here=$1 number=$2
for controller in freezer cpuset memory devices cpuacct; do
  group=/sys/fs/cgroup/$controller/node$number  # so that both may have /slurm/uid_0/job_1
  mkdir -p "$group"
  if [[ $controller == cpuset ]]; then
    cat /sys/fs/cgroup/cpuset/cpuset.cpus >"$group/cpuset.cpus"
    cat /sys/fs/cgroup/cpuset/cpuset.mems >"$group/cpuset.mems"
  fi
  echo $$ >"$group/cgroup.procs"
done
mkdir -p "$here/spool/n$number"
rm -f "$here/run/ready$number" "$here/run/linked$number"
setsid unshare --net --uts --ipc --pid --mount --cgroup --fork --mount-proc --kill-child \
  bash "$(dirname "$0")/node.sh" "$here" "$number" >>"$here/log/node$number.log" 2>&1 &
holder=$!
until [[ -e $here/run/ready$number ]]; do kill -0 "$holder"; sleep 0.1; done
first=$(tr -d ' ' <"/proc/$holder/task/$holder/children")
echo "$first" >"$here/run/node$number.pid"
ip link add "vslurm$number" type veth peer name eth0 netns "$first"
ip link set "vslurm$number" master brslurm up
touch "$here/run/linked$number"
