"""The servers under comparison, each a child process on a free loopback port, and the image they serve."""

import contextlib
import dataclasses
import functools
import hashlib
import http.client
import json
import os
import pathlib
import random
import socket
import subprocess
import time

REPOSITORY = "bench/image"
TAG = "latest"
# What Go clients accept for a manifest, in one header line.
ACCEPT = ", ".join(
    [
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ]
)
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
START_SECONDS = 15


@functools.cache
def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def request(port, method, path, body=None, headers=None):
    """One exchange on a connection of its own: (status, lower-case headers, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    finally:
        connection.close()


@dataclasses.dataclass
class Case:
    """What is measured."""

    name: str
    path: str  # below the server's prefix
    content: bytes
    connections: int = 16
    method: str = "GET"
    whole: bool = False  # each client fetches it as a whole, on a connection of its own


class Image:
    """One small manifest, its 300-byte configuration, layers of 1 MiB and of 1 GiB; the same bytes on every run."""

    def __init__(self):
        config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, "padding": ""}
        config["padding"] = "x" * (300 - len(json.dumps(config)))
        self.small = json.dumps(config).encode()
        self.large = random.Random(300).randbytes(1 << 20)
        self.huge = self.large * 1024
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": self._descriptor("application/vnd.oci.image.config.v1+json", self.small),
                "layers": [
                    self._descriptor("application/vnd.oci.image.layer.v1.tar", content) for content in (self.large, self.huge)
                ],
            }
        ).encode()
        assert len(self.small) == 300

    @staticmethod
    def _descriptor(media_type, content):
        return {"mediaType": media_type, "digest": digest(content), "size": len(content)}

    def cases(self):
        by_digest, by_tag = (f"{REPOSITORY}/manifests/{reference}" for reference in (digest(self.manifest), TAG))
        small, large, huge = (f"{REPOSITORY}/blobs/{digest(content)}" for content in (self.small, self.large, self.huge))
        return [
            Case("manifest by digest", by_digest, self.manifest),
            Case("manifest by fresh tag", by_tag, self.manifest),
            Case("HEAD of a fresh tag", by_tag, self.manifest, method="HEAD"),
            Case("blob of 300 bytes", small, self.small),
            Case("blob of 1 MiB", large, self.large),
            Case("manifest by digest, 256 connections", by_digest, self.manifest, 256),
            Case("manifest by fresh tag, 256 connections", by_tag, self.manifest, 256),
            Case("blob of 300 bytes, 256 connections", small, self.small, 256),
            Case("blob of 1 MiB, 256 connections", large, self.large, 256),
            Case("blob of 1 GiB, one client", huge, self.huge, 1, whole=True),
            Case("blob of 1 GiB, four clients", huge, self.huge, 4, whole=True),
        ]

    def push(self, port):
        for content in (self.small, self.large, self.huge):
            status, headers, _ = request(port, "POST", f"/v2/{REPOSITORY}/blobs/uploads/")
            assert status == 202, f"upload refused: {status}"
            # Absolute, with the upload's state in its query.
            location = "/" + headers["location"].split("/", 3)[3]
            status, _, body = request(
                port, "PUT", f"{location}&digest={digest(content)}", content, {"Content-Type": "application/octet-stream"}
            )
            assert status == 201, f"blob refused: {status} {body}"
        status, _, body = request(
            port, "PUT", f"/v2/{REPOSITORY}/manifests/{TAG}", self.manifest, {"Content-Type": MANIFEST_TYPE}
        )
        assert status == 201, f"manifest refused: {status} {body}"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A running server: its name, its port and the prefix below which it serves the image."""

    def __init__(self, name, command, port, directory, prefix="/v2/"):
        self.name, self.port, self.prefix = name, port, prefix
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                request(port, "GET", "/v2/")
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise SystemExit(f"{name} did not start:\n{self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{self.prefix}{path}"

    def processes(self):
        """The ids of the process and all its descendants, with what `/proc` says of them behind their names."""
        children, stats = {}, {}
        for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                # The second field is the name in parentheses, which may contain blanks.
                fields = stat.read_text().rpartition(")")[2].split()
                pid = int(stat.parent.name)
                children.setdefault(int(fields[1]), []).append(pid)
                stats[pid] = fields
        pending = [self.process.pid]
        while pending:
            pid = pending.pop()
            if pid in stats:
                yield pid, stats[pid]
            pending += children.get(pid, [])

    def cpu_seconds(self):
        """User and system time of the process and all its descendants so far."""
        return sum(int(fields[11]) + int(fields[12]) for _, fields in self.processes()) / os.sysconf("SC_CLK_TCK")

    def peak_bytes(self):
        """The most memory that each of them has had, added up."""
        status = "".join(pathlib.Path(f"/proc/{pid}/status").read_text() for pid, _ in self.processes())
        return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))

    def warm(self, path, content):
        """Asks until the answer is the expected bytes from the server's own store."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            status, headers, body = request(self.port, "GET", self.prefix + path, headers={"Accept": ACCEPT})
            if status == 200 and body != content:
                raise SystemExit(f"{self.name} answered {path} with other bytes")
            if status == 200 and headers.get("x-stopover", "hit") == "hit":
                return
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.name} never had {path} in store: {status} {headers} {body[:300]}")
            time.sleep(0.05)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def docker_registry(name, directory, proxy_of=None):
    """Debian's docker-registry, quiet; as a pull-through proxy where `proxy_of` is a port."""
    port = free_port()
    directory.mkdir()
    config = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(directory / "data")},
            "cache": {"blobdescriptor": "inmemory"},
        },
        "http": {"addr": f"127.0.0.1:{port}"},
        "health": {"storagedriver": {"enabled": False}},
    }
    if proxy_of:
        config["proxy"] = {"remoteurl": f"http://127.0.0.1:{proxy_of}"}
    file = directory / "config.yml"
    file.write_text(json.dumps(config))  # YAML includes JSON
    return Server(name, ["docker-registry", "serve", str(file)], port, directory)


def nginx_with(directory, port, http):
    """nginx with these settings of its own in the block `http`."""
    file = directory / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    file.write_text(
        f"""
{user}
worker_processes 2;
daemon off;
pid {directory}/pid;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  tcp_nodelay on;
  keepalive_requests 1000000000;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
{http}
}}
"""
    )
    return Server("nginx", ["nginx", "-e", str(directory / "error.log"), "-c", str(file)], port, directory)


def nginx(directory, upstream):
    """nginx as a caching proxy tuned for this job: the honest ceiling."""
    port = free_port()
    directory.mkdir()
    return nginx_with(
        directory,
        port,
        f"""
  proxy_cache_path {directory}/cache keys_zone=cache:10m inactive=1d use_temp_path=off;
  upstream registry {{ server 127.0.0.1:{upstream}; keepalive 16; }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{
      proxy_pass http://registry;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_cache cache;
      proxy_cache_valid 200 1d;
      proxy_cache_lock on;
    }}
  }}
""",
    )


def bare(binary, directory, image):
    """A server of ours that answers manifests and the small blob from memory, and can nothing else."""
    port = free_port()
    directory.mkdir()
    files = {"manifest": image.manifest, "blob": image.small}
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return Server("hyper", [str(binary), str(port), *(str(directory / name) for name in files)], port, directory)


def stopover(binary, directory, upstream, name="Stopover"):
    port = free_port()
    directory.mkdir()
    file = directory / "stopover.toml"
    file.write_text(f'fresh = "1d"\n[upstreams."test.local"]\nurl = "http://127.0.0.1:{upstream}"\n')
    command = [str(binary), "serve", "--listen", f"127.0.0.1:{port}"]
    command += ["--data-dir", str(directory / "data"), "--config", str(file)]
    return Server(name, command, port, directory, prefix="/v2/test.local/")
