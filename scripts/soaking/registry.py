"""A real registry (`docker-registry`) that comes and goes, and images for it."""

import asyncio
import gzip
import hashlib
import http.client
import io
import json
import random
import socket
import subprocess
import tarfile
import time

REPOSITORY = "skiff/soak"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
# Images that are pushed and were never pulled, for deploys while the registry is away too.
STOCK = 4
PATIENCE_S = 30


def digest(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Registry:
    def __init__(self, directory, layout):
        self.directory, self.layout = directory, layout
        self.port, self.process, self.pushed = free_port(), None, 0
        self.stock = []
        (directory / "storage").mkdir(parents=True)
        (directory / "config.yml").write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {directory}/storage}}}}\n"
            f"http: {{addr: 127.0.0.1:{self.port}}}\n"
        )
        self.base = self.read_base()

    @property
    def is_up(self):
        return self.process is not None

    def read_base(self):
        """The image `function` of the tests: its configuration, and its layers with their bytes."""
        index = json.loads((self.layout / "index.json").read_text())
        name = "org.opencontainers.image.ref.name"
        found = next(entry for entry in index["manifests"] if entry["annotations"][name] == "function")
        manifest = json.loads(self.blob(found["digest"]))
        config = json.loads(self.blob(manifest["config"]["digest"]))
        return config, [(layer, self.blob(layer["digest"])) for layer in manifest["layers"]]

    def blob(self, name):
        return (self.layout / "blobs" / name.replace(":", "/")).read_bytes()

    async def start(self):
        command = ["docker-registry", "serve", str(self.directory / "config.yml")]
        with open(self.directory / "log", "ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until = time.monotonic() + PATIENCE_S
        while not await asyncio.to_thread(self.answers):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"docker-registry does not answer: {(self.directory / 'log').read_text()}")
            await asyncio.sleep(0.05)
        self.process = process

    def answers(self):
        try:
            return self.ask("GET", "/v2/").status == 200
        except OSError:
            return False

    def stop(self):
        if self.process:
            process, self.process = self.process, None
            process.kill()
            process.wait()

    async def restock(self):
        """Pushes images until there are some that nobody has pulled."""
        while self.is_up and len(self.stock) < STOCK:
            try:
                self.stock.append(await asyncio.to_thread(self.push))
            except (OSError, http.client.HTTPException):
                # It was stopped meanwhile.
                return

    def push(self):
        """Makes an image with a layer that no other has, and gives its name."""
        self.pushed += 1
        tag = str(self.pushed)
        config, layers = self.base
        new = layer_with(f"image-{tag}", random.randbytes(64 * 1024))
        packed = gzip.compress(new)
        layers = [*layers, ({"mediaType": LAYER, "digest": digest(packed), "size": len(packed)}, packed)]
        config = json.loads(json.dumps(config))
        config["rootfs"]["diff_ids"].append(digest(new))
        config.pop("history", None)
        text = json.dumps(config).encode()
        kind = "application/vnd.oci.image.config.v1+json"
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": [layer for layer, _ in layers]}
        manifest["config"] = {"mediaType": kind, "digest": digest(text), "size": len(text)}
        for data in [text, *(data for _, data in layers)]:
            self.upload(data)
        put = self.ask("PUT", f"/v2/{REPOSITORY}/manifests/{tag}", json.dumps(manifest).encode(), MANIFEST)
        expect(put, 201)
        return f"127.0.0.1:{self.port}/{REPOSITORY}:{tag}"

    def upload(self, data):
        if self.ask("HEAD", f"/v2/{REPOSITORY}/blobs/{digest(data)}").status == 200:
            return
        begun = self.ask("POST", f"/v2/{REPOSITORY}/blobs/uploads/")
        expect(begun, 202)
        place = begun.headers["Location"].partition(f":{self.port}")[2]
        join = "&" if "?" in place else "?"
        expect(self.ask("PUT", f"{place}{join}digest={digest(data)}", data, "application/octet-stream"), 201)

    def ask(self, method, target, body=b"", kind=""):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, target, body, {"Content-Type": kind} if kind else {})
            response = connection.getresponse()
            response.read()
            return response
        finally:
            connection.close()


def expect(response, status):
    if response.status != status:
        raise http.client.HTTPException(f"the registry answered {response.status}, not {status}")


def layer_with(name, data):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
