"""A SLURM cluster of one node on this machine, for the tests of workflow/: `with cluster(folder)`.

Debian's packages slurm-wlm and munge have to be installed, and the process has to be root, since SLURM reads
/etc/slurm. An existing configuration there is left alone.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

CONFIGURATION = Path("/etc/slurm/slurm.conf")
GPUS = Path("/etc/slurm/gres.conf")
MARK = "# made by tests/slurm.py of gmlib"
TEXT = """{mark}
ClusterName=local
SlurmctldHost={host}
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket={munge}/socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
GresTypes=gpu
KillWait=10
MinJobAge=300
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
NodeName={host} CPUs={cpus} RealMemory={memory} Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
GPUS_TEXT = """Name=gpu File=/dev/null
"""


class NoCluster(Exception):
    """The daemons are installed but do not start here, as in a container without the rights that they need."""


def why_not() -> str:
    """Why there can be no cluster here; empty if there can."""
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(name) is None]
    if missing:
        return f"{missing[0]} is not installed (Debian: slurm-wlm and munge)"
    if os.getuid() != 0:
        return "SLURM's daemons need root here"
    if CONFIGURATION.exists() and MARK not in CONFIGURATION.read_text():
        return f"{CONFIGURATION} belongs to another cluster"
    return ""


@contextmanager
def cluster(folder: Path, cpus: int = 2) -> Iterator[None]:
    """Start a node with so many CPUs and a pretend GPU, and stop it in the end. Its logs are in the folder."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    host = socket.gethostname().partition(".")[0]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20 - 512
    with ExitStack() as stack:
        # A munged of its own: one that was killed leaves a socket behind at which nobody answers.
        # Its folder is not in `folder`, because the path of a socket has to be short.
        munge = stack.enter_context(TemporaryDirectory(prefix="munge"))
        text = TEXT.format(mark=MARK, host=host, folder=folder, munge=munge, cpus=cpus, memory=memory)
        CONFIGURATION.parent.mkdir(exist_ok=True)
        for path, content in ((CONFIGURATION, text), (GPUS, GPUS_TEXT)):
            path.write_text(content)
            stack.callback(path.unlink)
        Path(munge).chmod(0o755)  # munged wants its socket to be reachable for all
        (Path(munge) / "key").touch(0o600)
        (Path(munge) / "key").write_bytes(os.urandom(128))
        files = (f"--{name}-file={munge}/{name}" for name in ("key", "pid", "seed"))
        stack.enter_context(daemon(folder, "munged", "--foreground", f"--socket={munge}/socket", *files))
        for name in ("slurmctld", "slurmd"):
            stack.enter_context(daemon(folder, name, "-D", "-c"))
        deadline = time.monotonic() + 60
        while not says("sinfo", "-h", "-t", "idle", "-o", "%n"):
            if time.monotonic() > deadline:
                said = "; ".join(path.read_text()[-300:] for path in sorted(folder.glob("*.out")))
                raise NoCluster(f"SLURM does not start here: {' '.join(said.split())}")
            time.sleep(0.5)
        stack.callback(says, "scancel", "--user", "root")
        yield


@contextmanager
def daemon(folder: Path, *command: str) -> Iterator[None]:
    """Keep a process running that writes to a file in the folder."""
    log = folder / f"{command[0]}.out"
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def says(*command: str) -> str:
    """What a command of SLURM prints; nothing if it does not answer within ten seconds."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except subprocess.TimeoutExpired:
        return ""
