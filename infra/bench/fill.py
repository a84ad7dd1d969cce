#!/usr/bin/env python3
"""How fast one large blob is filled, beside `curl | sha256sum` of the same upstream: interleaved rounds, medians.

The upstream is nginx with one blob as a file: as fast as it goes, without range requests, and behind a relay that limits
each connection.
Writes its table into docs/explanation/benchmarks.md and fails where an acceptance ratio is missed. Needs curl and nginx
(`make setup`) and a release build of stopover.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time

import bench
import servers

BEGIN, END = "<!-- fills: begin -->", "<!-- fills: end -->"
MIB = 1 << 20
# What one connection to the limited upstream gets.
LIMIT = 10 * MIB
NAME = "bench/large"
# Stopover's throughput over that of what it is compared with.
BOUNDS = {"as fast as it goes": 0.9, "without range requests": 0.9, "10 MiB/s for each connection": 3.0}


def upstream(directory, content, manifest, extra):
    """nginx as a registry of one image."""
    port = servers.free_port()
    directory.mkdir()
    root = directory / "root"
    blobs = root / "v2" / NAME / "blobs"
    blobs.mkdir(parents=True)
    for name, source in content.items():
        os.link(source, blobs / name)
    tags = root / "v2" / NAME / "manifests"
    tags.mkdir()
    for tag in ("latest", servers.digest(manifest)):
        (tags / tag).write_bytes(manifest)
    (root / "v2" / "index.html").write_text("{}")
    return servers.nginx_with(
        directory,
        port,
        f"""
  server {{
    listen 127.0.0.1:{port};
    root {root};
    default_type application/octet-stream;
    location ~ /manifests/ {{
      default_type {servers.MANIFEST_TYPE};
      add_header Docker-Content-Digest {servers.digest(manifest)};
    }}
    location ~ /blobs/ {{ {extra} }}
  }}
""",
    )


class Relay:
    """Passes connections on to a port, each with so many bytes a second, whatever requests share it."""

    def __init__(self, target, rate):
        self.target, self.rate, self.port = target, rate, servers.free_port()
        self.loop = asyncio.new_event_loop()
        started = threading.Event()
        threading.Thread(target=self._run, args=(started,), daemon=True).start()
        started.wait()

    def _run(self, started):
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(asyncio.start_server(self._connection, "127.0.0.1", self.port))
        started.set()
        self.loop.run_forever()

    async def _connection(self, reader, writer):
        answers, requests = await asyncio.open_connection("127.0.0.1", self.target)

        async def pump(source, sink, rate):
            with contextlib.suppress(OSError):
                # What was not used while the connection was idle is lost.
                due = self.loop.time()
                while chunk := await source.read(65536):
                    sink.write(chunk)
                    await sink.drain()
                    if rate:
                        due = max(due, self.loop.time()) + len(chunk) / rate
                        await asyncio.sleep(due - self.loop.time())
            sink.close()

        await asyncio.gather(pump(reader, requests, None), pump(answers, writer, self.rate))

    def stop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)


def curl(port, digest):
    """Seconds that `curl | sha256sum` takes."""
    begun = time.monotonic()
    command = f"curl -sf http://127.0.0.1:{port}/v2/{NAME}/blobs/{digest} | sha256sum"
    output = subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True, capture_output=True, text=True).stdout
    seconds = time.monotonic() - begun
    assert output.split()[0] == digest.removeprefix("sha256:"), "other bytes"
    return seconds


def operate(directory, target):
    """An operator's question over the socket of the cache with this data directory: (status, body)."""
    connection = http.client.HTTPConnection("localhost", timeout=30)
    with contextlib.closing(connection):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(directory / "operator.sock"))
        connection.request("GET", target)
        response = connection.getresponse()
        return response.status, response.read()


def fill(binary, directory, port, digest):
    """Seconds from the pull of the manifest until the blob is stored, and the most memory that took in bytes."""
    server = servers.stopover(binary, directory, port)
    try:
        begun = time.monotonic()
        path = server.prefix + NAME
        status, _, _ = servers.request(server.port, "GET", f"{path}/manifests/latest", headers={"Accept": servers.ACCEPT})
        assert status == 200, status
        while True:
            status, body = operate(directory / "data", f"/_stopover/fills/{digest}")
            if status == 200 and json.loads(body)["state"] == "stored":
                break
            time.sleep(0.005)
        seconds = time.monotonic() - begun
        lines = pathlib.Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
        peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    finally:
        server.stop()
    shutil.rmtree(directory)
    return seconds, peak


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=pathlib.Path, help="the stopover program, built for release")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mebibytes", type=int, default=512, help="size of the blob; the limited upstream has a quarter")
    options = parser.parse_args()
    absent = [program for program in ("curl", "nginx") if not shutil.which(program)]
    if absent or not options.binary.is_file():
        raise SystemExit(f"missing: {', '.join(absent) or options.binary}; run make setup, then make bench")

    rows, missed, peak = [], [], 0
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stopover-bench-")))
        cases = [
            ("as fast as it goes", options.mebibytes, "", None),
            ("without range requests", options.mebibytes, "max_ranges 0;", None),
            ("10 MiB/s for each connection", options.mebibytes // 4, "", LIMIT),
        ]
        for number, (case, mebibytes, extra, limit) in enumerate(cases):
            content = directory / f"blob-{number}"
            content.write_bytes(os.urandom(MIB) * mebibytes)
            digest = "sha256:" + subprocess.run(["sha256sum", content], check=True, capture_output=True, text=True).stdout.split()[0]
            config = directory / f"config-{number}"
            config.write_text("{}")
            described = lambda media_type, digest, size: {"mediaType": media_type, "digest": digest, "size": size}
            manifest = json.dumps(
                {
                    "schemaVersion": 2,
                    "mediaType": servers.MANIFEST_TYPE,
                    "config": described("application/vnd.oci.image.config.v1+json", servers.digest(b"{}"), 2),
                    "layers": [described("application/vnd.oci.image.layer.v1.tar", digest, mebibytes * MIB)],
                }
            ).encode()
            blobs = {digest: content, servers.digest(b"{}"): config}
            server = upstream(directory / f"upstream-{number}", blobs, manifest, extra)
            stack.callback(server.stop)
            if limit:
                server = Relay(server.port, limit)
                stack.callback(server.stop)
            ratios, speeds = [], []
            for turn in range(options.rounds):
                # By turns, so that neither always runs after the other.
                if turn % 2:
                    filled, memory = fill(options.binary, directory / "stopover", server.port, digest)
                    plain = curl(server.port, digest)
                else:
                    plain = curl(server.port, digest)
                    filled, memory = fill(options.binary, directory / "stopover", server.port, digest)
                peak = max(peak, memory)
                ratios.append(plain / filled)
                speeds.append((mebibytes / plain, mebibytes / filled))
            ratio, bound = statistics.median(ratios), BOUNDS[case]
            one, other = (statistics.median(column) for column in zip(*speeds))
            met = "met" if ratio >= bound else "**missed**"
            rows.append(f"| {case} | {mebibytes} | {one:,.0f} | {other:,.0f} | ≥ {bound} | {ratio:.2f} | {met} |")
            if ratio < bound:
                missed.append(case)
    tables = "\n".join(
        [
            f"Medians of {options.rounds} rounds on {os.cpu_count()} × {bench.processor()}; "
            f"peak resident memory of Stopover {peak / MIB:.0f} MiB.",
            "",
            "| upstream | MiB | `curl \\| sha256sum` MiB/s | Stopover MiB/s | wanted | ratio | |",
            "| --- | --: | --: | --: | --: | --: | --- |",
            *rows,
        ]
    )
    print(tables)
    bench.write(tables, BEGIN, END)
    if missed:
        raise SystemExit(f"bench: missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
