#!/usr/bin/env python3
"""How many instructions a hit takes within the process: hardly a figure depends less on what else runs.

Counts those of one client's requests with callgrind, in a program whose store has everything: what three times as many
requests take more, for each of them. Prints a table. Needs valgrind (Debian has it), docker-registry (`make setup`) and a
release build of stopover.
"""

import argparse
import contextlib
import http.client
import pathlib
import re
import tempfile

import servers

# A program under callgrind starts slowly, and a layer of 1 GiB is filled before.
servers.START_SECONDS = 120


def instructions(binary, directory, case, requests):
    """All instructions of a process that answers so many requests."""
    port, counted = servers.free_port(), directory / "counted"
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={counted}", str(binary), "serve"]
    command += ["--listen", f"127.0.0.1:{port}", "--data-dir", str(directory / "data"), "--config", str(directory / "stopover.toml")]
    server = servers.Server("Stopover", command, port, directory, prefix="/v2/test.local/")
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        # A client that asks for a manifest with HEAD pulls it next, and then it is in memory.
        methods = ["GET", *[case.method] * requests] if case.method == "HEAD" else [case.method] * requests
        for method in methods:
            connection.request(method, server.prefix + case.path, headers={"Accept": servers.ACCEPT})
            answer = connection.getresponse()
            if answer.status != 200:
                raise SystemExit(f"{case.name}: {answer.status}")
            answer.read()
    server.process.terminate()
    server.process.wait(60)
    return int(re.search(r"^(?:totals|summary): (\d+)", counted.read_text(), re.MULTILINE)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=pathlib.Path, help="the stopover program, built for release")
    parser.add_argument("--requests", type=int, default=400)
    options = parser.parse_args()
    image = servers.Image()
    cases = [case for case in image.cases() if case.connections == 16]
    print("| case | instructions of a hit |\n| --- | --: |")
    with tempfile.TemporaryDirectory(prefix="stopover-bench-") as directory:
        directory = pathlib.Path(directory)
        upstream = servers.docker_registry("upstream", directory / "upstream")
        try:
            image.push(upstream.port)
            server = servers.stopover(options.binary, directory / "cache", upstream.port)
            try:
                for case in [*cases, *(case for case in image.cases() if case.whole)]:
                    server.warm(case.path, case.content)
            finally:
                server.stop()
            for case in cases:
                requests = options.requests // (10 if case.content is image.large else 1)
                few, many = (instructions(options.binary, directory / "cache", case, times * requests) for times in (1, 3))
                print(f"| {case.name} | {(many - few) // (2 * requests):,} |", flush=True)
        finally:
            upstream.stop()


if __name__ == "__main__":
    main()
