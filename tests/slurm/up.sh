#!/usr/bin/env bash
# Bring up a throwaway Slurm: five nodes, c1 to c3 in the partition cpu, g1 and g2 (two fake GPUs each) in gpu.
#
#     tests/slurm/up.sh [--owner PID] [DIR]      prints the cluster's folder, DIR or a new one below $TMPDIR
#     tests/slurm/in_cluster DIR COMMAND…        runs a command on its login node
#     tests/slurm/down.sh DIR                    ends everything in it and removes the folder
#
# --owner: the cluster also ends when this process does. The cluster lives in process, mount and network namespaces of its
# own: it meets no other cluster, opens no port of the machine, and with its first process all others are gone.
# Exit code 3: this machine cannot have one; the last line says what is missing.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
owner= dir=
while (($#)); do
  case $1 in
    --owner) owner=$2; shift 2 ;;
    *) dir=$1; shift ;;
  esac
done

cannot() {
  echo "No throwaway Slurm here: $*" >&2
  exit 3
}

missing() {
  local program
  for program in slurmctld slurmd sbatch squeue munged ip unshare nsenter; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || echo "$program"
  done
}

install_packages() {
  local policy=/usr/sbin/policy-rc.d made= apt="apt-get -o DPkg::Lock::Timeout=500 -qq"
  # Keeps the packages from starting services; where there is one already, it is the machine's own.
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy" && made=1
  fi
  local status=0
  {
    $apt update && DEBIAN_FRONTEND=noninteractive $apt install -y --no-install-recommends slurm-wlm munge iproute2 util-linux
  } >/dev/null 2>&1 || status=$?
  [ -z "$made" ] || rm -f "$policy"
  return "$status"
}

export PATH=$PATH:/usr/sbin:/sbin
[ "$(id -u)" = 0 ] || cannot "it takes root (namespaces, munge, device files), and this is $(id -un)"
if [ -n "$(missing)" ]; then
  command -v apt-get >/dev/null || cannot "no apt-get to install slurm-wlm and munge with; missing: $(missing | xargs)"
  install_packages || cannot "apt-get could not install slurm-wlm and munge; missing: $(missing | xargs)"
  [ -z "$(missing)" ] || cannot "missing after installing slurm-wlm and munge: $(missing | xargs)"
fi
unshare --mount --pid --fork --net true 2>/dev/null || cannot "this machine allows no namespaces (a container? it wants CAP_SYS_ADMIN)"

[ -n "$dir" ] || dir=$(mktemp -d "${TMPDIR:-/tmp}/earmark-slurm.XXXXXX")
mkdir -p "$dir" && dir=$(cd "$dir" && pwd)
[ -z "$(ls -A "$dir")" ] || cannot "$dir is not empty"
mkdir -p "$dir"/{etc,run,state,log,dev,spool/{c1,c2,c3,g1,g2}} /etc/slurm

for gpu in 0 1; do
  mknod "$dir/dev/fakegpu$gpu" c 1 3 2>/dev/null || ln -s /dev/null "$dir/dev/fakegpu$gpu"
done
cat >"$dir/etc/gres.conf" <<CONF
AutoDetect=off
NodeName=g[1-2] Name=gpu File=$dir/dev/fakegpu[0-1]
CONF

# Nodes claim more CPUs and memory than the machine has (config_overrides). Memory is enforced by looking once a second,
# which needs no cgroups. MinJobAge: squeue knows every job of a session, also after its end.
cat >"$dir/etc/slurm.conf" <<CONF
ClusterName=earmark
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=6817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/run/munge.sock
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=bf_interval=2,sched_min_interval=0,batch_sched_delay=0
ReturnToService=2
MinJobAge=86400
KillWait=2
SlurmctldTimeout=30
SlurmdTimeout=30
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=c1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=6821 CPUs=4 RealMemory=16000
NodeName=c2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=6822 CPUs=4 RealMemory=16000
NodeName=c3 NodeHostname=localhost NodeAddr=127.0.0.1 Port=6823 CPUs=4 RealMemory=16000
NodeName=g1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=6824 CPUs=4 RealMemory=16000 Gres=gpu:2
NodeName=g2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=6825 CPUs=4 RealMemory=16000 Gres=gpu:2
PartitionName=cpu Nodes=c[1-3] Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=g[1-2] MaxTime=INFINITE State=UP
CONF

# The namespaces' first process does nothing but bury the dead; it falls with `unshare`, and everything with it.
cat >"$dir/first_process" <<'FIRST'
trap : CHLD
while :; do sleep 3600 & wait; done
FIRST
setsid unshare --mount --pid --fork --kill-child --mount-proc --net bash "$dir/first_process" \
  </dev/null >"$dir/log/first_process.log" 2>&1 &
holder=$!
echo "$holder $(cut -d' ' -f22 "/proc/$holder/stat")" >"$dir/holder"
trap 'tail -n 5 "$dir"/log/*.log >&2; "$here/down.sh" "$dir"; exit 1' ERR INT TERM
for _ in $(seq 100); do
  first=$(cat "/proc/$holder/task/$holder/children" 2>/dev/null || true)
  # It is ready when it runs under its own name: before that, /proc is still the machine's.
  [ -n "$first" ] && [ "$(cat "/proc/${first// /}/comm" 2>/dev/null)" = bash ] && break
  sleep 0.05
done
echo "${first// /}" >"$dir/first_pid"

if [ -n "$owner" ]; then
  setsid bash -c '
    while kill -0 "$1" && [ -e "$2/holder" ]; do sleep 1; done 2>/dev/null
    exec "$3/down.sh" "$2"' watcher "$owner" "$dir" "$here" </dev/null >/dev/null 2>&1 &
fi

"$here/in_cluster" "$dir" bash -euc '
  dir=$1
  mount --bind "$dir/etc" /etc/slurm
  ip link set lo up
  ip address add 198.51.100.1/32 dev lo  # names resolve only where there is an address besides 127.0.0.1
  (umask 077 && head -c 1024 /dev/urandom >"$dir/run/munge.key")
  munged --force --key-file "$dir/run/munge.key" --socket "$dir/run/munge.sock" --pid-file "$dir/run/munged.pid" \
    --log-file "$dir/log/munged.log" --seed-file "$dir/run/munge.seed" 2>>"$dir/log/munged.log"
  slurmctld
  for node in c1 c2 c3 g1 g2; do slurmd -N "$node"; done
' up "$dir" >>"$dir/log/start.log" 2>&1

for _ in $(seq 120); do
  states=$("$here/in_cluster" "$dir" sinfo -h -N -o '%N %T' 2>/dev/null || true)
  [ "$(grep -c ' idle$' <<<"$states")" = 5 ] && break
  sleep 0.5
done
if [ "$(grep -c ' idle$' <<<"$states")" != 5 ]; then
  tail -n 5 "$dir"/log/*.log >&2
  "$here/down.sh" "$dir"
  cannot "the nodes did not become idle within a minute ($(tr '\n' ';' <<<"$states")); what the daemons said stands above"
fi
trap - ERR INT TERM
echo "$dir"
