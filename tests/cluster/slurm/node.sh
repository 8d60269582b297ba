#!/usr/bin/env bash
# The first process of a node, within its namespaces: network, then slurmd.
set -euo pipefail
here=$1 number=$2
hostname "n$number"
for controller in freezer cpuset memory devices cpuacct; do  # seen from this control group namespace
  umount "/sys/fs/cgroup/$controller"
  mount -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller"
done
mount --bind "$here/etc/hosts" /etc/hosts
# gRPC asks the name server first: none, rather than one out of reach.
mount --bind "$here/etc/resolv.conf" /etc/resolv.conf
mkdir -p "$here/tmp"
mount -t tmpfs tmpfs "$here/tmp"  # a disk of its own
mount -t tmpfs -o size=4g tmpfs /dev/shm
ip link set lo up
touch "$here/run/ready$number"
until [[ -e $here/run/linked$number ]]; do sleep 0.1; done
ip address add "10.88.0.$number/24" dev eth0
ip link set eth0 up
ip route add default via 10.88.0.254
slurmd -f "$here/etc/slurm.conf" -N "n$number"
exec env --ignore-signal=CHLD sleep 36000  # a first process that clears away dead ones
