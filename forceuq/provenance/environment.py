"""The code, software and machine that a job runs with, as found out by the process itself."""

import importlib.metadata
import os
import platform
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from forceuq.files import file_digest
from forceuq.provenance.places import relative
from forceuq.provenance.schema import Git, Machine, Software

PACKAGE = "forceuq"
PROJECT = Path(__file__).parents[2]
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_LARGEST_UNTRACKED = 2**20  # bytes of a file that git does not know; of larger ones the name alone is kept


def sources(root: Path) -> dict[str, Path]:
    """Return the source files of the running script and of the package's imported modules, by name.

    A module goes by its dotted name, the script by its path relative to the project (absolute outside of it).
    """
    found = {}
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if script is not None:
        path = Path(script)
        found[relative(path, root)] = path
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] == PACKAGE and file is not None:
            found[name] = Path(file)
    return {name: path for name, path in found.items() if path.is_file()}


def git_state(root: Path) -> tuple[Git, bytes | None]:
    """Return the state of the repository, and its difference to the commit where there is one.

    The difference holds tracked files as ``git diff`` shows them, and whole the files that git does not know (and
    does not ignore).
    """
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return Git(commit=None, dirty=None), None
    status = _git(root, "status", "--porcelain", "-z", "--untracked-files=all") or b""
    name = commit.decode().strip()
    if not status:
        return Git(commit=name, dirty=False), None
    difference = _git(root, "diff", "--full-index", "--no-ext-diff", "--no-color", "HEAD") or b""
    for entry in sorted(status.split(b"\0")):
        if entry.startswith(b"?? "):
            difference += _untracked(root, os.fsdecode(entry[3:]))
    return Git(commit=name, dirty=True), difference


def _untracked(root: Path, name: str) -> bytes:
    path = root / name
    try:
        size = path.stat().st_size
        digest = file_digest(path)
        content = path.read_bytes() if size <= _LARGEST_UNTRACKED else b"(too large to be kept)\n"
    except OSError:  # a link to nothing, or gone meanwhile
        return f"untracked {name}: unreadable\n".encode()
    return f"untracked {name} sha256 {digest}\n".encode() + content + b"\n"


def _git(root: Path, *arguments: str) -> bytes | None:
    try:
        # Without locks: many jobs ask at the same time.
        command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def packages() -> bytes:
    """Return the installed packages, one ``name==version`` a line."""
    # From the names of their folders: reading the metadata of each takes longer than many a job's hashing.
    folders = {folder.stem for entry in sys.path if entry for folder in Path(entry).glob("*.dist-info")}
    return "".join(f"{name.replace('-', '==', 1)}\n" for name in sorted(folders, key=str.lower)).encode()


def software(root: Path, installed: bytes, digest: str) -> Software:
    """Return the software that runs.

    Args:
        root: the project's folder.
        installed: what ``packages`` returned.
        digest: under which that is kept.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    lock = root / "envs" / f"lock-py{version}.txt"
    there = lock.is_file()
    return Software(
        python=platform.python_version(),
        packages=digest,
        versions=_versions(installed.decode()),
        lock=lock.name if there else None,
        lock_sha256=file_digest(lock) if there else None,
    )


def _versions(installed: str) -> dict[str, str]:
    """Return the versions of the packages that this one depends on."""
    try:
        required = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    names = [re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in required if "extra ==" not in line]
    known = {_normalised(name): version for name, _, version in (line.partition("==") for line in installed.split())}
    return {name: known[_normalised(name)] for name in names if _normalised(name) in known}


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def machine(threads: int) -> Machine:
    """Return where this process runs; the GPU only if it used one."""
    settings = {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ}
    torch: Any = sys.modules.get("torch")
    gpu = driver = cuda = None
    # Through sys.modules: a job that did without PyTorch is spared its import.
    if torch is not None and hasattr(torch, "get_num_threads"):
        settings["torch"] = str(torch.get_num_threads())
        if torch.cuda.is_initialized():
            gpu, driver, cuda = torch.cuda.get_device_name(), _gpu_driver(), torch.version.cuda
    return Machine(
        host=socket.gethostname(),
        system=platform.platform(),
        cpu=_cpu_model(),
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        gpu=gpu,
        gpu_driver=driver,
        cuda=cuda,
        slurm_job_id=os.environ.get("SLURM_JOB_ID"),
        threads=threads,
        thread_settings=settings,
    )


def _cpu_model() -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or None
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else platform.machine() or None


def _gpu_driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.split()
    return lines[0] if lines else None
