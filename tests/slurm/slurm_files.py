"""The configuration files of the test cluster: Slurm's, its database's and the clients' wrappers."""

import fcntl
import os
import secrets
import shutil
import socket
import stat
import tempfile
from pathlib import Path

CLIENTS = ("sacct", "sacctmgr", "salloc", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun", "sstat")
NODES = ("c1", "c2", "g1", "g2")
# What each node has, as slurm/partitions.yaml says.
CPUS = {"c": 32, "g": 64}
MEMORY_MB = {"c": 128_000, "g": 256_000}
GPUS, GPU = 4, "a100"
PORTS = 3 + len(NODES)  # controller, accounting, database, one a node
# A host whose name is not loopback's would make Slurm listen on its network; its daemons then get a name of their own.
RENAMED = ("unshare", "--uts", "sh", "-c", 'hostname localhost; exec "$@"', "sh")


def on_loopback(name: str) -> bool:
    """Return whether a host name resolves to this machine alone."""
    try:
        return socket.gethostbyname(name).startswith("127.")
    except OSError:
        return False


def free_ports(first: int, count: int) -> int:
    """Return the first of a block of ports that nothing listens on.

    It is this process's until it ends: clusters that start together, and do not listen yet, take different ones.
    """
    for start in range(first, first + 2000, 20):
        if _reserve(start) and not any(_is_open(port) for port in range(start, start + count)):
            return start
    raise RuntimeError(f"no {count} free ports from {first} on")


def _reserve(start: int) -> bool:
    """Lock a block of ports against other processes that ask for one; return whether none has."""
    file = os.open(Path(tempfile.gettempdir(), f"forceuq-ports-{start}.lock"), os.O_CREAT | os.O_RDWR, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return False
    return True  # left open: the lock ends with the process


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def slurm_conf(folder: Path, port: int, user: str, host: str, accounting: bool) -> str:
    """Return slurm.conf: four nodes on this host, c1 and c2 without GPUs, g1 and g2 with pretended ones."""
    if accounting:
        accounts = f"""\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port + 1}
AccountingStoragePass={folder}/run/munge.sock
AccountingStorageTRES=gres/gpu,gres/gpu:{GPU}
AccountingStoreFlags=job_comment"""
    else:
        accounts = "AccountingStorageType=accounting_storage/none"
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port + 3 + i} CPUs={CPUS[name[0]]}"
        + f" RealMemory={MEMORY_MB[name[0]]}"
        + (f" Gres=gpu:{GPU}:{GPUS}" if name.startswith("g") else "")
        for i, name in enumerate(NODES)
    )
    limits = "MaxTime=2-00:00:00 DefaultTime=10 DefMemPerCPU=1000 State=UP"
    return f"""\
ClusterName=forceuq
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock,cred_expire=20
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# The nodes claim more than the host has.
SlurmdParameters=config_overrides
# A node that was lost comes back by itself; one that an administrator took down does not.
ReturnToService=1
SlurmctldTimeout=30
SlurmdTimeout=20
KillWait=5
# Tests ask for jobs that ended long ago on a slow machine.
MinJobAge=7200
SchedulerParameters=bf_interval=2,sched_interval=2
# Jobs over their memory are killed without cgroups, which a container does not have.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=UsePss,OverMemoryKill
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/finished_jobs.txt
GresTypes=gpu
{accounts}
{nodes}
# A job in `urgent` takes a node of `cpu` from those that run there.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=cpu Nodes=c[1-2] Default=YES PriorityTier=1 {limits}
PartitionName=gpu Nodes=g[1-2] PriorityTier=1 {limits}
PartitionName=urgent Nodes=c[1-2] PriorityTier=9 PreemptMode=OFF {limits}
"""


def gres_conf(folder: Path) -> str:
    """Return gres.conf; Slurm asks for a character device a GPU."""
    gpus = f"Name=gpu Type={GPU} Flags=nvidia_gpu_env File={folder}/dev/gpu[0-{GPUS - 1}]"
    return f"AutoDetect=off\nNodeName=g[1-2] {gpus}\n"


def slurmdbd_conf(folder: Path, port: int, user: str, password: str) -> str:
    """Return slurmdbd.conf."""
    return f"""\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port + 1}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock
CommunicationParameters=NoInAddrAny
PidFile={folder}/run/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={port + 2}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_accounts
"""


def database_sql(password: str) -> str:
    """Return what the database runs as it starts."""
    return f"""\
CREATE DATABASE IF NOT EXISTS slurm_accounts;
CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}';
GRANT ALL ON slurm_accounts.* TO 'slurm'@'127.0.0.1';
"""


def write_files(folder: Path, port: int, user: str, accounting: bool) -> None:
    """Write everything a cluster's daemons and clients need into a fresh folder."""
    for name in ("etc", "bin", "run", "log", "state", "spool", "dev"):
        (folder / name).mkdir(parents=True)
    renamed = not on_loopback(socket.gethostname())
    host = "localhost" if renamed else socket.gethostname().partition(".")[0]
    (folder / "etc/slurm.conf").write_text(slurm_conf(folder, port, user, host, accounting))
    (folder / "etc/gres.conf").write_text(gres_conf(folder))
    _write_private(folder / "etc/munge.key", secrets.token_bytes(128))
    for i in range(GPUS):
        (folder / f"dev/gpu{i}").symlink_to("/dev/null")
    if accounting:
        password = secrets.token_hex(16)
        _write_private(folder / "etc/slurmdbd.conf", slurmdbd_conf(folder, port, user, password).encode())
        _write_private(folder / "etc/database.sql", database_sql(password).encode())
    # The executor's job step drops every SLURM_ variable, SLURM_CONF too, before it calls srun: the clients must find
    # the cluster without it.
    rename = " ".join(f"'{word}'" for word in RENAMED) if renamed else ""
    for client in CLIENTS:
        wrapper = folder / "bin" / client
        real = shutil.which(client, path="/usr/bin:/usr/local/bin")
        wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/etc/slurm.conf exec {rename} {real} "$@"\n')
        wrapper.chmod(0o755)


def _write_private(file: Path, content: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IRUSR | stat.S_IWUSR)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(content)
