"""The peers of the benchmark of cold starts: each has an image loaded, starts a container of it in the host's
network, and removes it; their daemons, stores and sockets are in directories of their own."""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

from common import daemon, end_process, processes, run, wait_until

IMAGE = "bench/python:1"
# Below which cgroup the peers put theirs, so that all of it can be removed.
GROUP = f"skiff-bench-{os.getpid()}"
PORT = "FC_CUSTOM_LISTEN_PORT"


def remove_groups():
    """What the peers leave of their cgroups."""
    mounts = Path("/sys/fs/cgroup")
    for top in [*mounts.glob(f"{GROUP}*"), *mounts.glob(f"*/{GROUP}*")]:
        for directory, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)


def forget(stack, *directories):
    """What engines make in places that cannot be configured goes, if it was not there before."""
    for directory in directories:
        if not Path(directory).exists():
            stack.callback(shutil.rmtree, directory, ignore_errors=True)


def unmount_below(directory):
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{directory}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], capture_output=True)


class Bare:
    """The same server of the same files, without any container."""

    name = "bare, in a chroot"

    def __init__(self, stack, work, archive, layout):
        run("umoci", "--log=error", "unpack", "--image", f"{layout}:python", work / "bare")
        self.root, self.running = work / "bare/rootfs", {}
        stack.callback(lambda: [self.remove(name) for name in list(self.running)])

    def start(self, name, port):
        command = [shutil.which("chroot"), str(self.root), "/bin/sh", "-c", "cd /srv && exec python3 server.py"]
        environment = {"PATH": "/usr/bin:/bin", PORT: str(port), "PYTHONUNBUFFERED": "1"}
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.running[name] = subprocess.Popen(command, env=environment, **quiet)
        return self.running[name]

    def remove(self, name):
        end_process(self.running.pop(name), signal.SIGKILL)


class Engine:
    """A peer with a command line."""

    def start(self, name, port):
        command = list(map(str, [*self.command, *self.run_words(name, port), self.image, *self.after(name)]))
        # Why it fails is told where this program's own errors are.
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        return subprocess.Popen(command, start_new_session=True, **quiet)

    def after(self, name):
        return []

    def quietly(self, *words):
        subprocess.run(list(map(str, [*self.command, *words])), capture_output=True)

    def clean(self, directory):
        unmount_below(directory)
        remove_groups()


class Containerd(Engine):
    name = "containerd (ctr run)"
    image = f"docker.io/{IMAGE}"

    def __init__(self, stack, work, archive, layout):
        directory = work / "c"
        directory.mkdir()
        # The sockets of its shims.
        forget(stack, "/run/containerd")
        stack.callback(self.clean, directory)
        config = directory / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{directory}/sock"\n[ttrpc]\naddress = "{directory}/ttrpc"\n'
        )
        self.command, self.names = ["ctr", "-a", directory / "sock"], set()
        daemon(stack, directory / "log", "containerd", "-c", config)
        stack.callback(lambda: [self.remove(name) for name in list(self.names)])
        version = list(map(str, [*self.command, "version"]))
        wait_until("containerd", lambda: subprocess.run(version, capture_output=True).returncode == 0)
        run(*self.command, "image", "import", archive)

    def run_words(self, name, port):
        self.names.add(name)
        return ["run", "-d", "--net-host", "--cgroup", f"/{GROUP}/{name}", "--env", f"{PORT}={port}",
                # The image says nothing of it, and ctr adds none.
                "--env", "PATH=/usr/bin:/bin"]

    def after(self, name):
        return [name]

    def remove(self, name):
        self.quietly("task", "rm", "-f", name)
        self.quietly("container", "rm", name)
        self.names.discard(name)


class Podman(Engine):
    name = "podman run"
    image = f"docker.io/{IMAGE}"

    def __init__(self, stack, work, archive, layout):
        directory = work / "p"
        directory.mkdir()
        forget(stack, "/run/libpod", "/run/crun", "/run/runc", "/var/lib/cni")
        stack.callback(self.clean, directory)
        # crun of Debian 12 refuses cgroups in hybrid mode.
        self.command = ["podman", "--root", directory / "root", "--runroot", directory / "run", "--runtime", "runc",
                        "--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]
        stack.callback(self.wait_for_the_last, directory)
        stack.callback(self.quietly, "rm", "-f", "-a", "-t", "0")
        run(*self.command, "load", "-q", "-i", archive)

    def run_words(self, name, port):
        # It would ask for more than a root without CAP_SYS_RESOURCE may have.
        limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--cgroup-parent", f"/{GROUP}-p"]
        return ["run", "-d", "--network", "host", *limits, "--name", name, "-e", f"{PORT}={port}"]

    def remove(self, name):
        self.quietly("rm", "-f", "-t", "0", name)

    @staticmethod
    def wait_for_the_last(directory):
        """Each container has a process that cleans up after it, in its own time."""
        at_work = lambda: processes(lambda entry: str(directory) in (entry / "cmdline").read_text())
        wait_until("the end of podman's processes", lambda: not at_work())


class Docker(Engine):
    name = "Docker (docker run)"
    image = IMAGE

    def __init__(self, stack, work, archive, layout):
        directory = work / "d"
        directory.mkdir()
        forget(stack, "/run/docker")
        stack.callback(self.clean, directory)
        self.command = ["docker", "--config", directory / "config", "-H", f"unix://{directory}/sock"]
        daemon(
            stack, directory / "log", "dockerd", "-H", f"unix://{directory}/sock", "--data-root", directory / "root",
            "--exec-root", directory / "exec", "--pidfile", directory / "pid", "--iptables=false", "--ip6tables=false",
            "--ip-forward=false", "--ip-masq=false", "--bridge=none", "--userland-proxy=false",
            "--cgroup-parent", f"/{GROUP}-d", "--config-file", self.empty(directory),
        )
        stack.callback(self.remove_all)
        version = list(map(str, [*self.command, "version"]))
        wait_until("dockerd", lambda: subprocess.run(version, capture_output=True).returncode == 0)
        run(*self.command, "load", "-q", "-i", archive)

    @staticmethod
    def empty(directory):
        (directory / "daemon.json").write_text("{}")
        return directory / "daemon.json"

    def run_words(self, name, port):
        return ["run", "-d", "--network", "host", "--name", name, "-e", f"{PORT}={port}"]

    def remove(self, name):
        self.quietly("rm", "-f", name)

    def remove_all(self):
        left = subprocess.run(list(map(str, [*self.command, "ps", "-aq"])), capture_output=True, text=True).stdout
        for name in left.split():
            self.remove(name)
