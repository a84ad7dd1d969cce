#!/usr/bin/env python3
"""How long the first pull of an image takes through an empty cache, beside nginx and docker-registry as empty caches, and
beside a pull from upstream itself: interleaved rounds, medians.

A pull is the manifest by its tag, then every blob, three at a time as clients do, until the last byte is there. The client
checks how many bytes came, and hashes nothing: that would take most of the time. The upstream is nginx with blobs as files.
Writes its table into docs/explanation/benchmarks.md and fails where an acceptance ratio is missed. Needs nginx and
docker-registry (`make setup`) and a release build of stopover.
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import tempfile
import time

import bench
import fill
import servers

BEGIN, END = "<!-- cold: begin -->", "<!-- cold: end -->"
DIRECT = "upstream itself"
MIB = 1 << 20
# How many blobs a client fetches at a time.
PARALLEL = 3
# The case, its layers in MiB, what one connection to upstream gets, and how many times the seconds of the quicker peer, or
# of upstream itself, the first pull may take.
CASES = [
    ("one layer of 1 GiB", [1024], None, {"peers": 1.2}),
    ("ten layers of 20 MiB", [20] * 10, None, {"peers": 1.2}),
    ("ten layers of 20 MiB, 10 MiB/s for each connection", [20] * 10, fill.LIMIT, {DIRECT: 1.05}),
]


def image(directory, layers):
    """Blobs as files by their digests, and the manifest that names them."""
    directory.mkdir()
    blobs, described = {}, []
    for number, mebibytes in enumerate([0, *layers]):
        content = directory / str(number)
        content.write_bytes(os.urandom(MIB) * mebibytes or b"{}")
        digest = "sha256:" + subprocess.run(["sha256sum", content], check=True, capture_output=True, text=True).stdout.split()[0]
        blobs[digest] = content
        kind = "layer.v1.tar" if mebibytes else "config.v1+json"
        media_type = f"application/vnd.oci.image.{kind}"
        described.append({"mediaType": media_type, "digest": digest, "size": content.stat().st_size})
    manifest = {"schemaVersion": 2, "mediaType": servers.MANIFEST_TYPE, "config": described[0], "layers": described[1:]}
    return blobs, json.dumps(manifest).encode()


def download(port, path, size):
    """Reads an answer to its end without keeping it."""
    head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
    buffer, received = memoryview(bytearray(MIB)), 0
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head.encode())
        while count := connection.recv_into(buffer):
            received += count
    if received < size:
        raise SystemExit(f"{received} bytes of {size} came from {path}")


def pull(port, prefix):
    """Seconds from the question about the tag to the last byte."""
    begun = time.monotonic()
    path = f"{prefix}{fill.NAME}"
    status, _, manifest = servers.request(port, "GET", f"{path}/manifests/latest", headers={"Accept": servers.ACCEPT})
    assert status == 200, (status, manifest[:300])
    manifest = json.loads(manifest)
    with concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
        blobs = [manifest["config"], *manifest["layers"]]
        list(pool.map(lambda blob: download(port, f"{path}/blobs/{blob['digest']}", blob["size"]), blobs))
    return time.monotonic() - begun


def through(start, directory, port):
    """The same through a cache that has nothing yet."""
    # What others have written must not be paid for here.
    os.sync()
    server = start(directory, port)
    try:
        return pull(server.port, server.prefix)
    finally:
        server.stop()
        shutil.rmtree(directory)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=pathlib.Path, help="the stopover program, built for release")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    absent = [program for program in ("docker-registry", "nginx") if not shutil.which(program)]
    if absent or not options.binary.is_file():
        raise SystemExit(f"missing: {', '.join(absent) or options.binary}; run make setup, then make bench")
    field = {
        bench.NGINX: servers.nginx,
        bench.PROXY: lambda directory, port: servers.docker_registry(bench.PROXY, directory, proxy_of=port),
        bench.STOPOVER: lambda directory, port: servers.stopover(options.binary, directory, port),
    }
    rows, verdicts = [], []
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stopover-bench-")))
        for number, (case, layers, limit, bounds) in enumerate(CASES):
            server = fill.upstream(directory / f"upstream-{number}", *image(directory / f"image-{number}", layers), "")
            stack.callback(server.stop)
            if limit:
                server = fill.Relay(server.port, limit)
                stack.callback(server.stop)
            lasted = {name: [] for name in (DIRECT, *field)}
            for turn in range(options.rounds):
                lasted[DIRECT].append(pull(server.port, "/v2/"))
                names = list(field)
                # Rotated, so that none always runs after the same other one.
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    lasted[name].append(through(field[name], directory / "cache", server.port))
            seconds = {name: statistics.median(all) for name, all in lasted.items()}
            rows.append(f"| {case} | " + " | ".join(f"{each:.2f}" for each in seconds.values()) + " |")
            of = {DIRECT: seconds[DIRECT], "peers": min(seconds[bench.NGINX], seconds[bench.PROXY])}
            for beside, bound in bounds.items():
                ratio, words = seconds[bench.STOPOVER] / of[beside], "the quicker peer" if beside == "peers" else beside
                verdicts.append((f"{case}: seconds ÷ those of {words}", f"≤ {bound}", f"{ratio:.2f}", ratio <= bound))
    tables = "\n".join(
        [
            f"Medians of {options.rounds} rounds, in seconds, on {os.cpu_count()} × {bench.processor()}.",
            "",
            f"| first pull | {' | '.join(lasted)} |",
            "| --- |" + " --: |" * len(lasted),
            *rows,
            "",
            *bench.render_verdicts(verdicts),
        ]
    )
    print(tables)
    bench.write(tables, BEGIN, END)
    if missed := [claim for claim, *_, met in verdicts if not met]:
        raise SystemExit(f"cold: missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
