"""A real Slurm on one machine, for tests: its own daemons in one folder, nothing of the system's configuration.

    python tests/slurm/cluster.py install             # Debian's packages, as root
    python tests/slurm/cluster.py start FOLDER [--no-accounting]
    python tests/slurm/cluster.py env FOLDER          # what to `eval` before calling sbatch or snakemake
    python tests/slurm/cluster.py stop FOLDER

Nodes c1 and c2 (partition `cpu`, and `urgent`, which preempts it) and g1 and g2 (partition `gpu`, four pretended A100
each). All ports are on loopback. With accounting there is an account `lab`.
"""

import argparse
import contextlib
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import slurm_files
from slurm_files import NODES

FIRST_PORT = int(os.environ.get("FORCEUQ_TEST_SLURM_PORT", "26700"))
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db")
SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
LONGEST_FOLDER = 60  # a socket's path may have 107 characters


def missing(accounting: bool = True) -> list[str]:
    """Return the programs that are not installed."""
    return [name for name in NEEDED + ACCOUNTING * accounting if shutil.which(name, path=SYSTEM_PATH) is None]


def install() -> None:
    """Install Debian's packages; no daemon of theirs is started."""
    if os.geteuid() != 0:
        raise PermissionError("installing Slurm needs root")
    policy = Path("/usr/sbin/policy-rc.d")
    made = not policy.exists()
    if made:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    packages = ["munge", "slurmctld", "slurmd", "slurm-client", "slurmdbd", "mariadb-server"]
    apt = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    wanted = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    try:
        if subprocess.run(wanted, env=apt, capture_output=True, check=False).returncode:
            subprocess.run(["apt-get", "update"], env=apt, capture_output=True, check=True)
            subprocess.run(wanted, env=apt, capture_output=True, check=True)
    finally:
        if made:
            policy.unlink()


def wait_until(condition: Callable[[], object], seconds: float, what: str, every: float = 0.2) -> None:
    """Poll until something holds.

    Raises:
        TimeoutError: it did not, naming ``what``.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not after {seconds:.0f} s")
        time.sleep(every)


@dataclass(frozen=True)
class Job:
    """A job as Slurm's controller knows it (``scontrol show job``)."""

    fields: dict[str, str]

    @property
    def id(self) -> str:
        """Return its number."""
        return self.fields["JobId"]

    @property
    def state(self) -> str:
        """Return PENDING, RUNNING, COMPLETED, FAILED, ..."""
        return self.fields["JobState"]

    @property
    def rule(self) -> str:
        """Return the rule, from the comment that the executor writes."""
        return self.fields.get("Comment", "").removeprefix("rule_").partition("_wildcards_")[0]

    @property
    def node(self) -> str:
        """Return where it runs or ran."""
        return self.fields.get("NodeList", "")

    @property
    def memory_mb(self) -> int:
        """Return what it asked for."""
        size = self.fields["MinMemoryNode"]
        return round(float(size.rstrip("MG")) * (1024 if size.endswith("G") else 1))


class Cluster:
    """A cluster in a folder.

    Args:
        folder: short (its sockets lie in it); made by ``start``.
        accounting: with slurmdbd and a database, or without.
    """

    def __init__(self, folder: Path, accounting: bool = True) -> None:
        if len(str(folder)) > LONGEST_FOLDER:
            raise ValueError(f"{folder}: longer than {LONGEST_FOLDER} characters, too long for sockets in it")
        self.folder = folder
        self.accounting = accounting

    # -- as a whole

    def start(self) -> None:
        """Bring everything up; what already runs stays."""
        if not (self.folder / "etc").exists():
            port = slurm_files.free_ports(FIRST_PORT, slurm_files.PORTS)
            slurm_files.write_files(self.folder, port, getpass.getuser(), self.accounting)
            (self.folder / "cluster.json").write_text(json.dumps({"port": port, "accounting": self.accounting}))
        self.accounting = self._settings()["accounting"]
        try:
            self._start_munge()
            if self.accounting:
                self._start_accounting()
            self.start_controller()
            for node in NODES:
                self.start_node(node)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self._ends_of_logs()}") from None

    def stop(self) -> None:
        """Cancel all jobs and end every process of the cluster."""
        if self._alive("slurmctld"):
            with contextlib.suppress(subprocess.SubprocessError):
                self.run("scancel", "--user", getpass.getuser(), timeout=10)
                wait_until(lambda: not list(self._job_processes()), 20, "jobs did not end")
        for process in self._job_processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for name in [*(f"slurmd.{node}" for node in NODES), "slurmctld", "slurmdbd", "mariadbd", "munged"]:
            self._stop(name)

    def environment(self) -> dict[str, str]:
        """Return the environment of a login session on this cluster."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return {**own, "PATH": f"{self.folder}/bin:{own['PATH']}", "SLURM_CONF": f"{self.folder}/etc/slurm.conf"}

    def run(self, *command: str, timeout: float = 60, check: bool = True) -> str:
        """Run a client and return what it printed."""
        done = subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    # -- its jobs

    def jobs(self) -> list[Job]:
        """Return all jobs that the controller remembers, the oldest first."""
        lines = self.run("scontrol", "--oneliner", "show", "jobs", check=False).splitlines()
        return [
            Job(dict(field.partition("=")[::2] for field in line.split())) for line in lines if line.startswith("JobId")
        ]

    def job(self, number: str) -> Job:
        """Return one job."""
        return next(job for job in self.jobs() if job.id == number)

    def accounts(self, fields: str, *arguments: str) -> list[dict[str, str]]:
        """Return the jobs as accounting knows them (``sacct``), every start of a requeued job a row."""
        printed = self.run("sacct", "-X", "-D", "-P", "-S", "now-2hours", f"--format={fields}", *arguments)
        names, *rows = (line.split("|") for line in printed.splitlines())
        return [dict(zip(names, row, strict=True)) for row in rows]

    # -- faults

    def crash_node(self, node: str) -> None:
        """Kill a node's daemon, its jobs and all their processes, as a power cut would."""
        processes = [*self._job_processes(node)]
        if daemon := self._alive(f"slurmd.{node}"):
            processes.insert(0, daemon)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def start_node(self, node: str) -> None:
        """Start a node, or bring a crashed one back."""
        if not self._alive(f"slurmd.{node}"):
            self._spawn(f"slurmd.{node}", "slurmd", "-D", "-N", node)
        up = ("idle", "mixed", "allocated", "completing", "draining", "drained", "planned")
        wait_until(lambda: self.node_state(node).startswith(up), 90, f"node {node} did not come up")

    def node_state(self, node: str) -> str:
        """Return idle, mixed, allocated, down, drained, ..."""
        return self.run("sinfo", "-h", "-N", "-n", node, "-o", "%T", check=False).partition("\n")[0]

    def drain(self, node: str) -> None:
        """Let a node's jobs end and start none there."""
        self.run("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")

    def resume(self, node: str) -> None:
        """End what ``drain`` began, or take a lost node back."""
        self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        wait_until(lambda: self.node_state(node).startswith(("idle", "mixed", "alloc")), 60, f"{node} did not return")

    def stop_controller(self) -> None:
        """Stop the controller; jobs go on."""
        self._stop("slurmctld")

    def start_controller(self) -> None:
        """Start the controller, from its saved state if there is one."""
        if not self._alive("slurmctld"):
            self._spawn("slurmctld", "slurmctld", "-D")
        wait_until(lambda: self.run("scontrol", "ping", check=False).count("is UP"), 60, "slurmctld does not answer")

    # -- daemons

    def _settings(self) -> dict[str, int]:
        return json.loads((self.folder / "cluster.json").read_text())

    def _start_munge(self) -> None:
        socket_file = self.folder / "run/munge.sock"
        if not self._alive("munged"):
            run, log = self.folder / "run", self.folder / "log/munged.log"
            files = {"socket": socket_file, "pid-file": run / "munged.pid", "seed-file": run / "seed", "log-file": log}
            options = [f"--{name}={file}" for name, file in files.items()]
            key = f"--key-file={self.folder}/etc/munge.key"
            self._spawn("munged", "munged", "--foreground", "--force", key, *options)
        answers = ["munge", "-S", str(socket_file), "-n"]
        wait_until(lambda: not subprocess.run(answers, capture_output=True, check=False).returncode, 30, "no munge")

    def _start_accounting(self) -> None:
        folder, port = self.folder, self._settings()["port"]
        if not (folder / "database").exists():
            subprocess.run(
                [
                    *("mariadb-install-db", "--no-defaults", f"--user={getpass.getuser()}", "--skip-test-db"),
                    *("--auth-root-authentication-method=normal", f"--datadir={folder}/database"),
                ],
                env={**os.environ, "PATH": SYSTEM_PATH},
                capture_output=True,
                check=True,
            )
        if not self._alive("mariadbd"):
            self._spawn(
                *("mariadbd", "mariadbd", "--no-defaults", f"--user={getpass.getuser()}"),
                *(f"--datadir={folder}/database", f"--socket={folder}/run/mysql.sock", "--bind-address=127.0.0.1"),
                *(
                    f"--port={port + 2}",
                    "--skip-name-resolve",
                    "--skip-log-bin",
                    f"--init-file={folder}/etc/database.sql",
                ),
                *("--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900"),
            )
        wait_until(lambda: _listening(port + 2), 60, "mariadbd did not start")
        if not self._alive("slurmdbd"):
            self._spawn("slurmdbd", "slurmdbd", "-D")
        wait_until(lambda: _listening(port + 1), 60, "slurmdbd did not start")
        wait_until(lambda: "Cluster" in self.run("sacctmgr", "list", "cluster", check=False), 60, "no accounting")
        if "lab" not in self.run("sacctmgr", "-n", "-P", "list", "account", "format=account"):
            self.run("sacctmgr", "-i", "add", "cluster", "forceuq")
            self.run("sacctmgr", "-i", "add", "account", "lab", "cluster=forceuq")
            self.run("sacctmgr", "-i", "add", "user", getpass.getuser(), "account=lab", "cluster=forceuq")

    def _spawn(self, name: str, *command: str) -> None:
        """Start a daemon in the foreground of a session of its own, and record its process."""
        renamed = () if slurm_files.on_loopback(socket.gethostname()) else slurm_files.RENAMED
        with (self.folder / f"log/{name}.out").open("ab") as output:
            process = subprocess.Popen(
                [*renamed, *command],
                env={**self.environment(), "PATH": SYSTEM_PATH},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        record = {"pid": process.pid, "started": psutil.Process(process.pid).create_time()}
        (self.folder / f"run/{name}.json").write_text(json.dumps(record))

    def _alive(self, name: str) -> psutil.Process | None:
        """Return a daemon's process if it runs: the recorded number alone may be another's by now."""
        try:
            record = json.loads((self.folder / f"run/{name}.json").read_text())
            process = psutil.Process(record["pid"])
            running = process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - record["started"]) < 1
        except (FileNotFoundError, psutil.NoSuchProcess):
            return None
        return process if running else None

    def _stop(self, name: str) -> None:
        process = self._alive(name)
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            wait_until(lambda: self._alive(name) is None, 20, name)
        except TimeoutError:
            process.kill()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, 0)

    def _job_processes(self, node: str = "") -> Iterator[psutil.Process]:
        """Yield the processes of jobs: each step's daemon holds its node's log open, and the others descend from it."""
        log = f"{self.folder}/log/slurmd.{node}"
        for process in psutil.process_iter(["name"]):
            if process.info["name"] == "slurmstepd":
                with contextlib.suppress(psutil.Error):
                    if any(file.path.startswith(log) for file in process.open_files()):
                        yield from (process, *process.children(recursive=True))

    def _ends_of_logs(self) -> str:
        logs = sorted((self.folder / "log").glob("*"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-500:]}" for log in logs)


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["install", "start", "env", "stop"])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--no-accounting", action="store_true")
    arguments = parser.parse_args()
    if arguments.action == "install":
        install()
        return
    if arguments.folder is None:
        parser.error(f"{arguments.action} needs the cluster's folder")
    cluster = Cluster(arguments.folder.resolve(), not arguments.no_accounting)
    if arguments.action == "start":
        cluster.start()
    elif arguments.action == "stop":
        cluster.stop()
    else:
        print(f"export SLURM_CONF={cluster.folder}/etc/slurm.conf PATH={cluster.folder}/bin:$PATH")


if __name__ == "__main__":
    main()
