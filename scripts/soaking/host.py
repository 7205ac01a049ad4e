"""What the kernel shows of processes, and of all that a run could leave."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    pid: int
    started: int
    name: str
    parent: int
    state: str

    @staticmethod
    def of(pid):
        try:
            head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        except OSError:
            return None
        fields = tail.split()
        return Process(pid, int(fields[19]), head.partition("(")[2], int(fields[1]), fields[0])

    def is_alive(self):
        now = Process.of(self.pid)
        return now is not None and now.started == self.started and now.state != "Z"

    def thaw(self):
        """Thaws its cgroup of version 1, if it is frozen; one of version 2 need not be."""
        for line in self.cgroup().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "freezer":
                # It may be gone by now.
                with contextlib.suppress(OSError):
                    Path(f"/sys/fs/cgroup/freezer{path}/freezer.state").write_text("THAWED")

    def cgroup(self):
        try:
            return Path(f"/proc/{self.pid}/cgroup").read_text()
        except OSError:
            return ""


def processes():
    found = (Process.of(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return [process for process in found if process]


def peak_rss(pid):
    """The most memory that a process has had, in bytes; 0 when it has gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def holds(pid, path):
    """Whether a process has a file open."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for name in names:
        try:
            if os.readlink(f"/proc/{pid}/fd/{name}") == str(path):
                return True
        except OSError:
            continue
    return False


def snapshot():
    """Every mount, cgroup, loop device, network namespace and process that could be Skiff's."""
    everything, all_processes = set(), processes()
    everything |= {f"mount {line}" for line in mountinfo()}
    everything |= {f"cgroup {path}" for path in cgroups()}
    everything |= set(loop_devices())
    everything |= set(network_namespaces(all_processes))
    for process in all_processes:
        own = process.name == "skiff" or process.name.startswith("skiff-keeper")
        if own or "/skiff/" in process.cgroup():
            everything.add(f"process {process.pid} {process.name} {process.started}")
    return everything


def mountinfo():
    return Path("/proc/self/mountinfo").read_text().splitlines()


def cgroups():
    """Skiff's groups in every hierarchy, at its top and below the group that this process is in."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((line[3:].strip("/") for line in lines if line.startswith("0::/")), "")
    for mount in mountinfo():
        if " - cgroup" not in mount:
            continue
        root = Path(mount.split()[4])
        for parent in {root / "skiff", root / own / "skiff", (root / own).parent / "skiff"}:
            groups = [path for path, _, _ in os.walk(parent)]
            # The common parent counts when it is empty: else it belongs to whoever runs.
            yield from groups if len(groups) == 1 else groups[1:]


def loop_devices():
    for device in Path("/sys/block").glob("loop*"):
        try:
            yield f"loop {device.name} {(device / 'loop/backing_file').read_text().strip()}"
        except OSError:
            continue


def network_namespaces(all_processes):
    """Those that a process is in, told by their number and their oldest process."""
    oldest = {}
    for process in all_processes:
        try:
            number = os.stat(f"/proc/{process.pid}/ns/net").st_ino
        except OSError:
            continue
        this = (process.started, process.pid)
        oldest[number] = min(oldest.get(number, this), this)
    return {f"netns {number} of {pid} {started}" for number, (started, pid) in oldest.items()}
