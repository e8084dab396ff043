#!/usr/bin/env bash
# The workflow on a real Slurm: `make test-slurm`. Three nodes with pretend GPUs run on this machine, in namespaces of their
# own (root on Debian 12): no network, nothing of it outlives this script, and the machine's /etc/slurm stays as it is.
# Where that is impossible, the reason is said loudly and nothing is tested. WMSE_SLURM=required turns that into a
# failure. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/../.."

skip() {
  printf '\n%s\n' "################################################################################"
  printf '##  SLURM NOT TESTED: %s\n' "$*"
  printf '%s\n\n' "################################################################################"
  if [ "${WMSE_SLURM:-}" = required ]; then exit 1; fi
  echo "0 passed, 0 failed, all skipped"
  exit 0
}
tryfor() { for _ in $(seq $(($1 * 10))); do if "${@:2}" >/dev/null 2>&1; then return; fi; sleep 0.1; done; return 1; }
stage() { echo "== $1 (after $SECONDS s)"; }

# First, outside the namespaces: what needs the network.
if [ -z "${WMSE_SLURM_WORK:-}" ]; then
  [ "$(id -u)" = 0 ] || skip "only root can start one"
  packages=(slurm-wlm slurmdbd munge mariadb-server iproute2)
  if ! dpkg -s "${packages[@]}" >/dev/null 2>&1; then
    stage "packages"
    command -v apt-get >/dev/null || skip "there is no apt here to install it with"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq -o DPkg::Lock::Timeout=300 --no-install-recommends "${packages[@]}"; } >/dev/null || skip "apt could not install it"
  fi
  own=(unshare --mount --net --uts --pid --fork --mount-proc --kill-child)
  "${own[@]}" true 2>/dev/null || skip "this system does not give out namespaces"
  WMSE_SLURM_WORK=$(mktemp -d /tmp/wmse-slurm.XXXXXX)
  trap 'kill ${child:-} 2>/dev/null || true; rm -rf "$WMSE_SLURM_WORK"' EXIT
  trap 'exit 130' INT TERM
  export WMSE_SLURM_WORK
  stage "apptainer"
  if ! command -v apptainer >/dev/null; then
    if docker/apptainer.sh install "$WMSE_SLURM_WORK/apptainer"; then
      export PATH=$WMSE_SLURM_WORK/apptainer/usr/bin:$PATH
    else
      export WMSE_NO_APPTAINER="it is not installed, and could not be (see above)"
      echo "##  APPTAINER NOT TESTED: $WMSE_NO_APPTAINER"
    fi
  fi
  # The process that this starts is the first of its namespace: all others end with it.
  "${own[@]}" tests/slurm/run.sh "$@" &
  child=$!
  wait "$child"
  exit
fi

work=$WMSE_SLURM_WORK
stage "slurm"
hostname ci
ip link set lo up
# The C library finds no address by name for who has only 127.0.0.1.
ip address add 10.0.0.1/32 dev lo
mkdir -p /etc/slurm "$work"/{state,log,munge,db,etc}
chmod 755 "$work"
mount --bind "$work/etc" /etc/slurm
printf '127.0.0.1 localhost\n10.0.0.1 ci\n' >"$work/hosts"
mount --bind "$work/hosts" /etc/hosts

cat >"$work/etc/slurm.conf" <<CONF
ClusterName=ci
SlurmctldHost=ci
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# How long a job that is queued again must wait; 120 seconds by default.
AuthInfo=socket=$work/munge/socket,cred_expire=5
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=ci
AccountingStoragePass=$work/munge/socket
AccountingStoreFlags=job_comment
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool-%n
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd-%n.pid
SlurmctldLogFile=$work/log/slurmctld
SlurmdLogFile=$work/log/slurmd-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=20
GresTypes=gpu
# More cores than there are: jobs that wait for a signal need none.
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=ci Port=17001 CPUs=32 RealMemory=32000 Gres=gpu:2
NodeName=n2 NodeHostname=ci Port=17002 CPUs=1 RealMemory=32000 Gres=gpu:2
NodeName=n3 NodeHostname=ci Port=17003 CPUs=32 RealMemory=32000 Gres=gpu:2
PartitionName=main Nodes=n1 Default=YES
PartitionName=low Nodes=n2 PriorityTier=1
PartitionName=high Nodes=n2 PriorityTier=2
PartitionName=other Nodes=n3
PartitionName=pair Nodes=n1,n3
CONF
cat >"$work/etc/gres.conf" <<'CONF'
# Pretend GPUs: Slurm gives them out, and tells each job its own.
Name=gpu File=/dev/null
Name=gpu File=/dev/zero
CONF
cat >"$work/etc/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket
DbdHost=ci
SlurmUser=root
LogFile=$work/log/slurmdbd
PidFile=$work/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StorageLoc=slurm
CONF
chmod 600 "$work/etc/slurmdbd.conf"

start() {
  dd if=/dev/urandom of="$work/munge/key" bs=1024 count=1 status=none
  chown -R munge:munge "$work/munge"
  chmod 400 "$work/munge/key"
  runuser -u munge -- munged --force --key-file "$work/munge/key" --socket "$work/munge/socket" \
    --pid-file "$work/munge/pid" --log-file "$work/munge/log" --seed-file "$work/munge/seed"
  chown mysql:mysql "$work/db"
  mariadb-install-db --no-defaults --user=mysql --datadir="$work/db/data" --auth-root-authentication-method=normal \
    --skip-test-db
  mariadbd --no-defaults --user=mysql --datadir="$work/db/data" --socket="$work/db/socket" --skip-networking \
    --innodb-lock-wait-timeout=900 >"$work/log/mariadbd" 2>&1 &
  tryfor 30 mariadb-admin --no-defaults -S "$work/db/socket" -u root ping
  mariadb --no-defaults -S "$work/db/socket" -u root \
    -e "create database slurm; create user slurm@localhost; grant all on slurm.* to slurm@localhost"
  MYSQL_UNIX_PORT=$work/db/socket slurmdbd
  tryfor 30 sacctmgr --noheader show cluster
  sacctmgr -i add cluster ci
  sacctmgr -i add account default
  sacctmgr -i add user root account=default
  slurmctld
  slurmd -N n1
  slurmd -N n2
  slurmd -N n3
  # shellcheck disable=SC2016 # it is for the inner shell
  tryfor 30 sh -c '[ "$(sinfo --noheader --Node --format "%N %T" | sort --unique)" = "$(printf "n1 idle\nn2 idle\nn3 idle")" ]'
}
trap 'tail -n 20 "$work"/log/*; echo "0 passed, 1 failed: Slurm does not start"' EXIT
start >"$work/log/start" 2>&1
trap - EXIT

stage "tests"
status=0
# The cases wait most of the time, but eight at once starved each other of two cores. The common conftest.py would load
# torch in every process.
pytest tests/slurm --confcutdir tests/slurm --numprocesses 3 --basetemp "$work/pytest" "$@" || status=$?
stage "done"
exit $status
