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
from contextlib import contextmanager
from pathlib import Path

CONFIGURATION = Path("/etc/slurm/slurm.conf")
MARK = "# made by tests/slurm.py of gmlib"
TEXT = """{mark}
ClusterName=local
SlurmctldHost={host}
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
KillWait=10
MinJobAge=300
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
NodeName={host} CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
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
    """Start a node with so many CPUs, and stop it in the end. Its logs and its state are in the folder."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    host = socket.gethostname().partition(".")[0]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    text = TEXT.format(mark=MARK, host=host, folder=folder, cpus=cpus, memory=pages // 2**20 - 512)
    CONFIGURATION.parent.mkdir(exist_ok=True)
    CONFIGURATION.write_text(text)
    daemons = []
    try:
        if not Path("/run/munge/munge.socket.2").exists():
            Path("/run/munge").mkdir(exist_ok=True)
            shutil.chown("/run/munge", "munge", "munge")
            if subprocess.run(["runuser", "-u", "munge", "--", "munged"], capture_output=True).returncode:
                raise NoCluster("SLURM does not start here: munged does not start")
        for command in (["slurmctld", "-D", "-c"], ["slurmd", "-D", "-c"]):
            with (folder / f"{command[0]}.out").open("w") as log:
                daemons.append(subprocess.Popen(command, stdout=log, stderr=log))
        deadline = time.monotonic() + 60
        while subprocess.run(["sinfo", "-h", "-t", "idle", "-o", "%n"], capture_output=True, text=True).stdout == "":
            if time.monotonic() > deadline:
                said = "; ".join((folder / name).read_text()[-300:] for name in ("slurmctld.out", "slurmd.out"))
                raise NoCluster(f"SLURM does not start here: {' '.join(said.split())}")
            time.sleep(0.5)
        yield
    finally:
        if daemons:
            subprocess.run(["scancel", "--user", "root"], check=False, capture_output=True, timeout=60)
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
        CONFIGURATION.unlink()
