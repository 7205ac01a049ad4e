"""Pull and unpack from an empty store, side by side. Called by scripts/bench."""

import argparse
import concurrent.futures
import contextlib
import gzip
import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import common

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
IMAGES = Path(os.environ.get("SKIFF_TEST_IMAGES", TARGET / "test-images"))
KEPT = TARGET / "bench-images"
SKIFF = TARGET / "release" / "skiff"
INFLATE = TARGET / "release" / "examples" / "inflate"
PORT = 5061
REGISTRY = f"127.0.0.1:{PORT}"
OWN_LAYER_BYTES = 4 << 20
# What the stores of one run of every peer take on the disk until the end.
ROUND_BYTES = 7 << 30
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"


def run(*command, **options):
    """Runs a command; its output is shown when it fails."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
    return done.stdout


# --- The images ----------------------------------------------------------------------------------


def split(archive, parts, directory):
    """Splits an archive into `parts` archives of about the same number of bytes."""
    with tarfile.open(archive) as source:
        members = source.getmembers()
        total = sum(m.size + 512 for m in members)
        names = [directory / f"{parts}-{n}.tar" for n in range(parts)]
        files = [tarfile.open(name, "w", format=tarfile.PAX_FORMAT) for name in names]
        where, done = {}, 0
        for member in members:
            # Links go where their target went: they belong to one layer.
            part = where.get(member.linkname) if member.islnk() else None
            if part is None:
                part = min(done * parts // total, parts - 1)
            where[member.name] = part
            done += member.size + 512
            files[part].addfile(member, source.extractfile(member) if member.isreg() else None)
        for file in files:
            file.close()
    return names


def own_layer(directory):
    """A layer that only the second image has; its bytes cannot be compressed."""
    path = directory / "own.tar"
    (directory / "own").write_bytes(os.urandom(OWN_LAYER_BYTES))
    with tarfile.open(path, "w") as archive:
        archive.add(directory / "own", "own")
    return path


class Layout:
    """An OCI image layout in the making."""

    def __init__(self, path):
        self.path, self.tags = path, []
        (path / "blobs/sha256").mkdir(parents=True)

    def blob(self, data, media_type):
        name = hashlib.sha256(data).hexdigest()
        (self.path / "blobs/sha256" / name).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(data)}

    def layer(self, tar, compression):
        data = tar.read_bytes()
        diff_id = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if compression == "gzip":
            return self.blob(gzip.compress(data, 6, mtime=0), GZIP), diff_id
        packed = subprocess.run(["zstd", "-3", "-q", "-c", tar], check=True, capture_output=True).stdout
        return self.blob(packed, ZSTD), diff_id

    def image(self, tag, layers):
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
        }
        described = self.blob(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json")
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described,
            "layers": [layer for layer, _ in layers],
        }
        entry = self.blob(json.dumps(manifest).encode(), manifest["mediaType"])
        entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
        self.tags.append(entry)

    def finish(self):
        (self.path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        index = {"schemaVersion": 2, "manifests": self.tags}
        (self.path / "index.json").write_text(json.dumps(index))


def make_images():
    """The images, once: `one` layer, `ten` equal layers, `ten-more` with a layer of its own, and the
    first two with zstd."""
    stamp = f"3 {hashlib.sha256((IMAGES / 'base.tar.gz').read_bytes()).hexdigest()}"
    if (KEPT / "stamp").exists() and (KEPT / "stamp").read_text() == stamp:
        return
    print("making the images (about two minutes, once)", file=sys.stderr)
    shutil.rmtree(KEPT, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=TARGET) as work:
        work = Path(work)
        plain = {"one": split(IMAGES / "base.tar.gz", 1, work), "ten": split(IMAGES / "base.tar.gz", 10, work)}
        layout = Layout(KEPT / "oci")
        for name, tars in plain.items():
            layers = [layout.layer(tar, "gzip") for tar in tars]
            layout.image(name, layers)
            if name == "ten":
                layout.image("ten-more", [*layers, layout.layer(own_layer(work), "gzip")])
            layout.image(f"{name}-zstd", [layout.layer(tar, "zstd") for tar in tars])
        layout.finish()
    (KEPT / "stamp").write_text(stamp)


class Registry:
    """docker-registry over plain HTTP with the images in it."""

    def __init__(self, directory):
        config = directory / "registry.yml"
        config.write_text(
            "version: 0.1\nlog: {level: error}\n"
            f"storage: {{filesystem: {{rootdirectory: {directory / 'registry'}}}, cache: {{blobdescriptor: inmemory}}}}\n"
            f"http: {{addr: {REGISTRY}}}\n"
        )
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=quiet, stderr=quiet)
        for _ in range(100):
            if subprocess.run(["curl", "-sf", f"http://{REGISTRY}/v2/"], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        for tag in ["one", "ten", "ten-more", "one-zstd", "ten-zstd"]:
            run("skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{KEPT / 'oci'}:{tag}",
                f"docker://{REGISTRY}/bench:{tag}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


# --- The peers -------------------------------------------------------------------------------------


def timed(command):
    """Seconds, and the most memory of the process in MiB."""
    with tempfile.TemporaryFile() as output:
        began = time.monotonic()
        process = subprocess.Popen([str(c) for c in command], stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        process.returncode = status
        if status != 0:
            output.seek(0)
            sys.exit(f"{command}: {output.read().decode()}")
    return seconds, usage.ru_maxrss / 1024


class Skiff:
    name = "Skiff"

    def __init__(self, directory):
        self.state = directory

    def pull(self, tag):
        return timed([SKIFF, "pull", "--quiet", "--plain-http", "--state-dir", self.state, f"{REGISTRY}/bench:{tag}"])

    def stop(self):
        pass


class Containerd:
    """With a daemon and a store of its own; the daemon's start is not counted."""

    name = "containerd"

    def __init__(self, directory):
        directory.mkdir()
        self.socket = directory / "sock"
        config = directory / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{self.socket}"\n[ttrpc]\naddress = "{directory}/ttrpc"\n'
        )
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(["containerd", "-c", str(config)], stdout=quiet, stderr=quiet)
        for _ in range(100):
            if subprocess.run(["ctr", "-a", self.socket, "version"], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)

    def pull(self, tag):
        return timed(["ctr", "-a", self.socket, "image", "pull", "--plain-http", f"{REGISTRY}/bench:{tag}"])

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


class Podman:
    name = "podman"

    def __init__(self, directory):
        directory.mkdir()
        self.store = ["podman", "--root", directory / "root", "--runroot", directory / "run", "--storage-driver", "overlay"]

    def pull(self, tag):
        return timed([*self.store, "pull", "--quiet", "--tls-verify=false", f"{REGISTRY}/bench:{tag}"])

    def stop(self):
        pass


class Umoci:
    name = "skopeo + umoci"

    def __init__(self, directory):
        directory.mkdir()
        self.directory = directory

    def pull(self, tag):
        layout, bundle = f"{self.directory}/oci:{tag}", f"{self.directory}/{tag}"
        copy = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{REGISTRY}/bench:{tag}", f"oci:{layout}"]
        fetched, _ = timed(copy)
        unpacked, memory = timed(["umoci", "unpack", "--image", layout, bundle])
        return fetched + unpacked, memory

    def stop(self):
        pass


PEERS = [Skiff, Containerd, Podman, Umoci]


# --- What is measured ------------------------------------------------------------------------------


def compare(tag, runs, directory, skip=()):
    """Medians of pulls from empty stores, one peer after the other in each round."""
    figures = {peer.name: [] for peer in PEERS if peer.name not in skip}
    for n in range(runs):
        for peer in PEERS:
            if peer.name in skip:
                continue
            peer_at = peer(directory / f"{peer.__name__[0]}-{tag}-{n}")
            figures[peer.name].append(peer_at.pull(tag))
            peer_at.stop()
            os.sync()
    return figures


def second(runs, directory):
    """A second image that shares ten layers with the first."""
    figures = {peer.name: [] for peer in PEERS if peer is not Umoci}
    for n in range(runs):
        for peer in PEERS:
            if peer is Umoci:
                continue
            peer_at = peer(directory / f"{peer.__name__[0]}-second-{n}")
            peer_at.pull("ten")
            os.sync()
            figures[peer.name].append(peer_at.pull("ten-more"))
            peer_at.stop()
    return figures


def together(count, directory):
    """`count` processes that pull the same image at once."""
    command = Skiff(directory / f"together-{count}")
    line = [str(SKIFF), "pull", "--quiet", "--plain-http", "--state-dir", str(command.state), f"{REGISTRY}/bench:ten"]
    began = time.monotonic()
    processes = [subprocess.Popen(line, stdout=subprocess.DEVNULL) for _ in range(count)]
    if any(process.wait() != 0 for process in processes):
        sys.exit("a pull failed")
    return time.monotonic() - began


def in_one_process(count, directory):
    """One node that is given `count` functions of the same image at once; jobs, of which no container is started."""
    with contextlib.ExitStack() as stack:
        node = common.Node(stack, directory / f"node-{count}", "--plain-http", "--no-metering")

        def deploy(number):
            file = f'platform = "fc2"\nmode = "job"\nname = "f{number}"\nimage = "{REGISTRY}/bench:ten"\n'
            connection = common.UnixConnection(node.socket)
            connection.request("POST", "/v1/functions", json.dumps({"file": file, "name": "f.toml"}))
            answer = connection.getresponse()
            text = answer.read().decode()
            connection.close()
            if answer.status >= 300:
                sys.exit(f"a deploy failed: {text}")

        with concurrent.futures.ThreadPoolExecutor(count) as callers:
            began = time.monotonic()
            list(callers.map(deploy, range(count)))
            return time.monotonic() - began


def blobs(tag):
    index = json.loads((KEPT / "oci/index.json").read_text())
    entry = next(m for m in index["manifests"] if tag in m["annotations"].values())
    path = lambda digest: KEPT / "oci/blobs/sha256" / digest.split(":")[1]
    return [path(layer["digest"]) for layer in json.loads(path(entry["digest"]).read_text())["layers"]]


def bounds(tag, runs, directory):
    """Seconds to inflate the layers alone, and to write the files alone with GNU tar."""
    inflate = [timed([INFLATE, *blobs(tag)])[0] for _ in range(runs)]
    plain = directory / f"plain-{tag}"
    plain.mkdir()
    for n, blob in enumerate(blobs(tag)):
        tool = "zstd" if tag.endswith("zstd") else "gzip"
        with open(plain / f"{n}.tar", "wb") as file:
            subprocess.run([tool, "-dc", blob], stdout=file, check=True)
    write = []
    for n in range(runs):
        targets = []
        for archive in plain.glob("*.tar"):
            target = plain / f"{n}-{archive.stem}"
            target.mkdir()
            targets.append((archive, target))
        began = time.monotonic()
        for process in [subprocess.Popen(["tar", "-xf", a, "-C", t]) for a, t in targets]:
            process.wait()
        write.append(time.monotonic() - began)
    return statistics.median(inflate), statistics.median(write)


def report(title, figures, bound=None):
    print(f"\n{title}")
    own = statistics.median(seconds for seconds, _ in figures["Skiff"])
    print(f"  {'':16} {'median s':>9} {'min':>7} {'max':>7} {'ratio':>7} {'MiB':>6}")
    for name, runs in figures.items():
        seconds = [s for s, _ in runs]
        median = statistics.median(seconds)
        memory = max(m for _, m in runs)
        print(f"  {name:16} {median:9.2f} {min(seconds):7.2f} {max(seconds):7.2f} {median / own:7.2f} {memory:6.0f}")
    if bound:
        print(f"  bound: inflating alone {bound[0]:.2f} s, writing alone (GNU tar) {bound[1]:.2f} s")


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench image", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs of each peer (default 5)")
    parser.add_argument("--make-images", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make_images:
        return make_images()
    need = (options.runs * ROUND_BYTES) >> 30
    free = shutil.disk_usage("/var/tmp").free >> 30
    if free < need:
        sys.exit(f"error: {options.runs} runs need {need} GiB in /var/tmp, and {free} GiB are free; try --runs 2")
    # In a process of its own: what this one holds would count as memory of the commands it starts.
    subprocess.run([sys.executable, __file__, "--make-images"], check=True)
    # All of it is removed at the end, since ext4 is slow to make files while others have just been
    # removed. The path is short because podman wants that.
    with tempfile.TemporaryDirectory(prefix="skiff-", dir="/var/tmp") as directory:
        directory = Path(directory)
        registry = Registry(directory)
        try:
            measure(options.runs, directory)
        finally:
            registry.stop()
            for mounted in directory.glob("P-*/root/overlay"):
                subprocess.run(["umount", mounted], capture_output=True)


def of_run(directory, n):
    below = directory / f"at-once-{n}"
    below.mkdir(exist_ok=True)
    return below


def measure(runs, directory):
    print(f"{os.cpu_count()} processors, {runs} runs each, medians; MiB is the pulling process's peak")
    for tag, title in [
        ("one", "one layer, gzip: Debian + Python"),
        ("ten", "ten equal layers, gzip: the same files"),
        ("one-zstd", "one layer, zstd"),
        ("ten-zstd", "ten equal layers, zstd"),
    ]:
        # umoci of Debian 12 reads no zstd.
        skip = [Umoci.name] if tag.endswith("zstd") else []
        report(title, compare(tag, runs, directory, skip), bounds(tag, runs, directory))
    report("a second image: ten layers shared, 4 MiB of its own", second(runs, directory))
    for title, pull in [("processes that pull", together), ("pulls in one process", in_one_process)]:
        alone, twenty = ([pull(count, of_run(directory, n)) for n in range(runs)] for count in (1, 20))
        one, all_of_them = statistics.median(alone), statistics.median(twenty)
        print(f"\ntwenty {title} at once {all_of_them:.2f} s, one {one:.2f} s: {all_of_them / one:.1f} times")


main()
