#!/usr/bin/env python3
"""Stopover beside Debian's docker-registry as a proxy and nginx proxy_cache: warm requests over loopback.

Interleaved rounds, medians, CPU time per request. Writes the tables into docs/explanation/benchmarks.md and fails where
an acceptance ratio is missed. Beside them runs a server that is hyper and nothing else (bare/). Needs wrk,
docker-registry, nginx (`make setup`) and release builds of stopover and of that server.

With --before it measures two builds of stopover beside each other instead, and fails where the new one is slower by more
than 3 %; nothing is written.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import platform
import re
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import servers

ROOT = pathlib.Path(__file__).resolve().parents[2]
REPORT = ROOT / "docs" / "explanation" / "benchmarks.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PROXY, NGINX, BARE, STOPOVER, BEFORE = "docker-registry proxy", "nginx", "hyper", "Stopover", "Stopover before"
MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}

# How many times the requests per second of each peer Stopover must reach.
BOUNDS = {
    "manifest by digest": {PROXY: 20, NGINX: 1.0, BARE: 0.8},
    "manifest by fresh tag": {PROXY: 20, NGINX: 1.0, BARE: 0.8},
    "HEAD of a fresh tag": {NGINX: 1.0, BARE: 0.8},
    "blob of 300 bytes": {NGINX: 0.8, BARE: 0.8},
    "blob of 1 MiB": {PROXY: 2, NGINX: 1.0},
    "blob of 1 GiB": {NGINX: 0.8},
}
# How many times the CPU time of nginx a request may take.
CPU_BOUNDS = {"manifest by digest": 1.15, "manifest by fresh tag": 1.15, "HEAD of a fresh tag": 1.15}
# The most memory that Stopover may take in all of it, in MiB.
MEMORY = 64
# A small blob that waits for a delayed acknowledgement takes 40 ms; one that does not is near nginx.
STALL_CASE = "blob of 300 bytes"
STALL_FACTOR, STALL_SLACK_MS = 10, 1.0


# How many times the requests per second of an earlier build each case must reach.
SLOWER = 0.97

# Above this share of CPU time spent elsewhere, the requests per second say little.
QUIET = 0.2


@dataclasses.dataclass
class Sample:
    """One run against one server."""

    rate: float  # requests per second
    p50: float  # milliseconds
    p99: float  # milliseconds
    cpu: float  # CPU microseconds of the server per request
    foreign: float  # share of the machine's CPU time used by neither the server nor wrk


def busy_seconds():
    """CPU time used by the whole machine so far."""
    fields = [int(field) for field in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK")


def latency(percentile, output):
    found = re.search(percentile + r"%\s+([\d.]+)(us|ms|s|m)\b", output)
    if not found:
        raise SystemExit(f"wrk reported no latency:\n{output}")
    return float(found[1]) * MILLISECONDS[found[2]]


def measure(server, case, seconds):
    cpu, busy, own, begun = server.cpu_seconds(), busy_seconds(), os.times(), time.monotonic()
    requests, rate, p50, p99 = (download if case.whole else ask if case.method == "HEAD" else wrk)(server, case, seconds)
    cpu, busy, after, lasted = server.cpu_seconds() - cpu, busy_seconds() - busy, os.times(), time.monotonic() - begun
    clients = sum(after[:4]) - sum(own[:4])
    foreign = max(0.0, busy - cpu - clients) / (lasted * os.cpu_count())
    return Sample(rate=rate, p50=p50, p99=p99, cpu=cpu / requests * 1e6, foreign=foreign)


def wrk(server, case, seconds):
    """Requests, requests per second, and latencies in milliseconds."""
    command = ["wrk", "-t1", f"-c{case.connections}", f"-d{seconds}s", "--latency", "--timeout", "30s", "-H", f"Accept: {servers.ACCEPT}"]
    output = subprocess.run(command + [server.url(case.path)], check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(f"{server.name} failed under load:\n{output}")
    requests = int(re.search(r"(\d+) requests in", output)[1])
    return requests, float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1]), latency("50", output), latency("99", output)


def ask(server, case, seconds):
    """The same for answers without a body: wrk waits for one."""
    request = f"{case.method} {server.prefix}{case.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {servers.ACCEPT}\r\n\r\n".encode()
    connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(case.connections)]
    poll, by_number, answers, begun = select.epoll(), {each.fileno(): each for each in connections}, 0, time.monotonic()
    for each in connections:
        each.sendall(request)
        poll.register(each, select.EPOLLIN)
    while (lasted := time.monotonic() - begun) < seconds:
        for number, _ in poll.poll():
            # So short an answer comes as a whole.
            if not by_number[number].recv(65536).startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"{server.name} failed under load")
            by_number[number].send(request)
            answers += 1
    for each in connections:
        each.close()
    # As many as there are connections are always under way.
    pause = case.connections * lasted / answers * 1e3
    return answers, answers / lasted, pause, pause


def download(server, case, seconds):
    """The same for clients that read as much at once as they get: wrk reads 8 KiB."""
    begun, lasted = time.monotonic(), []

    def client():
        buffer = memoryview(bytearray(1 << 20))
        while not lasted or time.monotonic() - begun < seconds:
            started = time.monotonic()
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                head = f"GET {server.prefix}{case.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
                connection.sendall(head.encode())
                received = 0
                while size := connection.recv_into(buffer):
                    received += size
            if received < len(case.content):
                raise SystemExit(f"{server.name} sent {received} bytes of {case.name}")
            lasted.append((time.monotonic() - started) * 1e3)

    clients = [threading.Thread(target=client) for _ in range(case.connections)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    return len(lasted), len(lasted) / (time.monotonic() - begun), statistics.median(lasted), max(lasted)


def median(samples):
    return Sample(*(statistics.median(column) for column in zip(*map(dataclasses.astuple, samples))))


def may_answer(server, case):
    """Whether a server has what a case asks for: the one of hyper alone has small answers only."""
    return server.name != BARE or BARE in BOUNDS[case.name.partition(",")[0]]


def run(binary, bare, before, rounds, seconds, only):
    """All samples: {case: {server: [Sample]}}, beside the peers or beside an earlier build; and {server: peak bytes}."""
    image = servers.Image()
    cases = [case for case in image.cases() if only in case.name]
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stopover-bench-")))

        def started(server):
            stack.callback(server.stop)
            return server

        upstream = started(servers.docker_registry("upstream", directory / "upstream"))
        image.push(upstream.port)
        if before:
            field = [started(servers.stopover(before, directory / "before", upstream.port, BEFORE))]
        else:
            field = [
                started(servers.docker_registry(PROXY, directory / "proxy", proxy_of=upstream.port)),
                started(servers.nginx(directory / "nginx", upstream.port)),
                started(servers.bare(bare, directory / "bare", image)),
            ]
        field.append(started(servers.stopover(binary, directory / "stopover", upstream.port)))
        able = {case.name: [server for server in field if may_answer(server, case)] for case in cases}
        samples = {name: {server.name: [] for server in others} for name, others in able.items()}
        for case in cases:
            for server in able[case.name]:
                server.warm(case.path, case.content)
                measure(server, case, 1)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            for case in cases:
                # Rotated, so that no server always runs after the same other one.
                for position in range(len(able[case.name])):
                    server = able[case.name][(number + position) % len(able[case.name])]
                    samples[case.name][server.name].append(measure(server, case, seconds))
        return samples, {server.name: server.peak_bytes() for server in field}


def judge(medians, memory):
    """The acceptance table: (claim, bound, measured, met)."""
    verdicts = []
    for case, by_server in medians.items():
        kind, ours = case.partition(",")[0], by_server[STOPOVER]
        for peer, bound in BOUNDS[kind].items():
            ratio = ours.rate / by_server[peer].rate
            verdicts.append((f"{case}: requests/s ÷ {peer}", f"≥ {bound}", f"{ratio:.2f}", ratio >= bound))
        if bound := CPU_BOUNDS.get(kind):
            ratio = ours.cpu / by_server[NGINX].cpu
            verdicts.append((f"{case}: CPU ÷ {NGINX}", f"≤ {bound}", f"{ratio:.2f}", ratio <= bound))
    peak = memory[STOPOVER] / (1 << 20)
    verdicts.append(("peak resident memory in MiB", f"≤ {MEMORY}", f"{peak:.0f}", peak <= MEMORY))
    if STALL_CASE not in medians:
        return verdicts
    stall, peer = medians[STALL_CASE][STOPOVER].p50, medians[STALL_CASE][NGINX].p50
    limit = STALL_FACTOR * peer + STALL_SLACK_MS
    verdicts.append((f"{STALL_CASE}: p50 in ms (no 40 ms stall)", f"< {limit:.2f}", f"{stall:.2f}", stall < limit))
    return verdicts


def judge_before(medians):
    """The same against an earlier build."""
    ratios = {case: by_server[STOPOVER].rate / by_server[BEFORE].rate for case, by_server in medians.items()}
    return [(f"{case}: requests/s ÷ before", f"≥ {SLOWER}", f"{ratio:.2f}", ratio >= SLOWER) for case, ratio in ratios.items()]


def render(medians, verdicts, settings):
    lines = [settings, "", "| case | server | requests/s | p50 ms | p99 ms | CPU µs/request |", "| --- | --- | --: | --: | --: | --: |"]
    for case, by_server in medians.items():
        for server, sample in by_server.items():
            lines.append(
                f"| {case} | {server} | {sample.rate:,.0f} | {sample.p50:.2f} | {sample.p99:.2f} | {sample.cpu:,.0f} |"
            )
    return "\n".join([*lines, "", *render_verdicts(verdicts)])


def render_verdicts(verdicts):
    lines = ["| Stopover against its peers | wanted | measured | |", "| --- | --: | --: | --- |"]
    return lines + [f"| {claim} | {bound} | {value} | {'met' if met else '**missed**'} |" for claim, bound, value, met in verdicts]


def write(tables, begin, end):
    """Puts tables into the report, between these marks."""
    head, _, rest = REPORT.read_text().partition(begin)
    REPORT.write_text(f"{head}{begin}\n{tables}\n{end}{rest.partition(end)[2]}")


def processor():
    found = re.search(r"model name\s*:\s*(.+)", pathlib.Path("/proc/cpuinfo").read_text())
    return found[1].strip() if found else platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=pathlib.Path, help="the stopover program, built for release")
    parser.add_argument("--bare", type=pathlib.Path, help="the server of hyper alone; default: bare, beside the program")
    parser.add_argument("--before", type=pathlib.Path, help="an earlier build to compare with, instead of the peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each run of wrk")
    parser.add_argument("--only", default="", help="the cases whose name has this in it; nothing is written then")
    options = parser.parse_args()
    absent = [program for program in ("wrk", "docker-registry", "nginx") if not shutil.which(program)]
    if absent or not all(binary.is_file() for binary in (options.binary, options.before) if binary):
        raise SystemExit(f"missing: {', '.join(absent) or options.binary}; run make setup, then make bench")

    bare = options.bare or options.binary.parent / "bare"
    samples, memory = run(options.binary, bare, options.before, options.rounds, options.seconds, options.only)
    medians = {case: {name: median(runs) for name, runs in by_server.items()} for case, by_server in samples.items()}
    foreign = statistics.median(s.foreign for by_server in samples.values() for runs in by_server.values() for s in runs)
    verdicts = judge_before(medians) if options.before else judge(medians, memory)
    settings = (
        f"Medians of {options.rounds} interleaved rounds, `wrk -t1 -c16 -d{options.seconds}s`, "
        f"on {os.cpu_count()} × {processor()}; "
        f"{foreign:.0%} of the CPU time went to neither the server nor its clients. Peak resident memory: "
        + ", ".join(f"{name} {bytes / (1 << 20):.0f} MiB" for name, bytes in memory.items())
        + "."
    )
    tables = render(medians, verdicts, settings)
    print(tables)
    if foreign > QUIET:
        print(f"bench: {foreign:.0%} of the CPU time went elsewhere; repeat on a quiet machine", file=sys.stderr)
    if not options.before and not options.only:
        write(tables, BEGIN, END)
    if not all(met for *_, met in verdicts):
        raise SystemExit("bench: an acceptance ratio was missed")


if __name__ == "__main__":
    main()
