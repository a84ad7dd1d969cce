#!/usr/bin/env python3
"""Builds all tests and the programs they run, once; runs every test; says how long each part took.

    infra/test.py [--lint] [TARGET...]

TARGET is made first, so that its time is in the table. With --lint clippy compiles what is tested, and a warning is an error:
one build instead of clippy's and another, but not the one that `cargo run` has made.

The exit status is 0 only if every part succeeded and no test failed or was skipped. The last line counts them.
"""

import argparse
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Test programs run in two lanes at a time: beside those that wait most of their time (for clients, for time to pass) run
# those that compute. Each lane runs its programs in this order; one that is not named here ends the second lane.
WAITING = ["programs", "clients", "functions", "adapters"]
COMPUTING = ["behaviours", "fuzz"]

# How many tests of a program run at a time, where that is not the number of processors.
THREADS = {"behaviours": 4, "clients": 4, "programs": 4}

# A million cases for each target of tests/fuzz. Where an error came from is told by its words: there is no debug information
# for a backtrace, and a million mistakes would each collect one.
ENVIRONMENT = {"STOPOVER_FUZZ": "1000000", "RUST_LIB_BACKTRACE": "0"}

# As `cargo clippy -- -D warnings` does it for `cargo check`.
LINTS = {"RUSTC_WORKSPACE_WRAPPER": str(ROOT / "infra" / "lint.sh"), "CLIPPY_ARGS": "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__"}

RESULT = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored; \d+ measured; (\d+) filtered out", re.M)


class Part:
    """Something that ran: how long, with how much work of the processors, and what its tests said."""

    def __init__(self, name):
        self.name, self.seconds, self.cpu, self.succeeded = name, 0.0, 0.0, False
        self.passed = self.failed = self.skipped = 0

    def run(self, command, log=None, **arguments):
        """Runs the command to its end; its output goes to the file, or where this program's goes."""
        begun = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log and subprocess.STDOUT, **arguments)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.seconds += time.monotonic() - begun
        self.cpu += used.ru_utime + used.ru_stime
        self.succeeded = process.returncode == 0

    def count(self, output):
        """Reads the results of its tests. A program that failed without a failed test counts as one."""
        for passed, failed, ignored, filtered in RESULT.findall(output):
            self.passed += int(passed)
            self.failed += int(failed)
            self.skipped += int(ignored) + int(filtered)
        if not self.succeeded and not self.failed:
            self.failed = 1


class Program:
    """A test program, as cargo describes it."""

    def __init__(self, message):
        target = message["target"]
        self.executable = message["executable"]
        self.directory = pathlib.Path(message["manifest_path"]).parent
        integration = target["kind"] == ["test"]
        self.name = target["name"] if integration else f"{target['name']} ({'unit' if 'lib' in target['kind'] else 'program'})"


def build(part, logs):
    """Builds everything, and returns the test programs."""
    targets = ["--workspace", "--bins", "--tests", "--profile", "test"]
    command = ["cargo", "build", "--locked", *targets, "--message-format=json-render-diagnostics"]
    messages = logs / "build.json"
    with messages.open("wb") as output:
        begun = time.monotonic()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        part.succeeded = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        part.seconds = time.monotonic() - begun
        part.cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    artifacts = (json.loads(line) for line in messages.read_text().splitlines() if line.startswith("{"))
    return [Program(one) for one in artifacts if one.get("profile", {}).get("test") and one.get("executable")]


def in_lanes(programs):
    """The programs of each lane, in their order."""
    by_name = {program.name: program for program in programs}
    missing = set(WAITING + COMPUTING) - by_name.keys()
    if missing:
        raise SystemExit(f"test: cargo built no {', '.join(sorted(missing))}: see the lanes in infra/test.py")
    waiting = [by_name.pop(name) for name in WAITING]
    return [waiting, [by_name.pop(name) for name in COMPUTING] + list(by_name.values())]


def run_lane(lane, parts, logs, lock):
    for program in lane:
        part = Part(program.name)
        log = logs / f"{re.sub('[^a-z]+', '-', program.name).strip('-')}.log"
        command = [program.executable]
        if program.name in THREADS:
            command.append(f"--test-threads={THREADS[program.name]}")
        with log.open("wb") as output:
            environment = {"CARGO_MANIFEST_DIR": str(program.directory), **ENVIRONMENT, **os.environ}
            part.run(command, log=output, cwd=program.directory, env=environment)
        report(part, log.read_text(errors="replace"), parts, lock)


def report(part, output, parts, lock):
    part.count(output)
    with lock:
        parts.append(part)
        print(f"test: {part.name}: {part.passed} passed, {part.failed} failed in {part.seconds:.0f} s", flush=True)
        if not part.succeeded:
            print(output, flush=True)


def documentation(parts, logs, lock):
    """The examples in doc comments."""
    part, log = Part("doc tests"), logs / "doc.log"
    with log.open("wb") as output:
        part.run(["cargo", "test", "--locked", "--workspace", "--doc"], log=output, cwd=ROOT)
    report(part, log.read_text(errors="replace"), parts, lock)


def table(parts, begun):
    lines = [("part", "seconds", "of processors", "tests")]
    for part in parts:
        tests = part.passed + part.failed + part.skipped
        lines.append((part.name, f"{part.seconds:.0f}", f"{part.cpu:.0f}", str(tests or "")))
    lines.append(("all", f"{time.monotonic() - begun:.0f}", f"{sum(part.cpu for part in parts):.0f}", ""))
    for name, seconds, cpu, tests in lines:
        print(f"{name:24}{seconds:>8}{cpu:>16}{tests:>8}")


def main(arguments):
    begun, parts, lock = time.monotonic(), [], threading.Lock()
    for target in arguments.targets:
        part = Part(target)
        parts.append(part)
        part.run(["make", "--no-print-directory", target], cwd=ROOT)
        if not part.succeeded:
            return finish(parts, begun, f"`make {target}` failed")
    if arguments.lint:
        os.environ.update(LINTS)
    logs = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "tests"
    logs.mkdir(parents=True, exist_ok=True)
    part = Part("build")
    parts.append(part)
    programs = build(part, logs)
    if not part.succeeded:
        return finish(parts, begun, "the tests cannot be built")
    lanes = [threading.Thread(target=run_lane, args=(lane, parts, logs, lock)) for lane in in_lanes(programs)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    documentation(parts, logs, lock)
    return finish(parts, begun, None)


def finish(parts, begun, problem):
    table(parts, begun)
    if problem:
        print(f"test: {problem}")
        return 1
    passed, failed, skipped = (sum(getattr(part, name) for part in parts) for name in ("passed", "failed", "skipped"))
    print(f"test: {passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return 0 if passed and not failed and not skipped and all(part.succeeded for part in parts) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", metavar="TARGET", nargs="*", help="of make")
    parser.add_argument("--lint", action="store_true", help="compile with clippy, and fail for its warnings")
    sys.exit(main(parser.parse_args()))
