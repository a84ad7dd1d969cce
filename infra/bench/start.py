#!/usr/bin/env python3
"""How long the registry function takes from its start to its first answer, beside a function that does nothing: a hello world of
lambda_http, built with the same profile in a directory of its own. Both are started in turns, under the Runtime API of infra/runtime.py.

    infra/bench/start.py PROGRAM [ROUNDS]     PROGRAM: .aws-sam/build/RegistryFunction/bootstrap

Wall time depends on what else the machine does; the time of the CPU, the kernel's included, hardly does.
"""

import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "infra"))
from runtime import Function, http_event  # noqa: E402

MANIFEST = """
[package]
name = "hello"
version = "0.1.0"
edition = "2024"

[dependencies]
lambda_http = { version = "1", default-features = false, features = ["apigw_http"] }
tokio = { version = "1", features = ["macros", "rt"] }

[profile.release]
strip = true

[workspace]
"""

PROGRAM = """
use lambda_http::{Body, Error, Request, Response, run, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    run(service_fn(async |_: Request| Ok::<_, Error>(Response::new(Body::from("hello"))))).await
}
"""

# Nothing listens there: an answer to /v2/ needs no call.
ENVIRONMENT = {
    "AWS_REGION": "eu-west-1",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "STOPOVER_TABLE": "table",
    "STOPOVER_BUCKET": "bucket",
    "STOPOVER_QUEUE_URL": "http://127.0.0.1:9/fills",
    "STOPOVER_BACKGROUND_QUEUE_URL": "http://127.0.0.1:9/background",
    "STOPOVER_DEAD_QUEUE_URL": "http://127.0.0.1:9/dead",
    "STOPOVER_ACCOUNT": "123456789012",
    "STOPOVER_SERVICE": "stopover:bench",
}


def hello(directory):
    """The program that does nothing. What cargo has downloaded and built for it stays in `target`."""
    (directory / "src").mkdir()
    (directory / ".cargo").mkdir()
    (directory / "Cargo.toml").write_text(MANIFEST)
    (directory / "src" / "main.rs").write_text(PROGRAM)
    profile = (ROOT / "functions" / ".cargo" / "config.toml").read_text()
    # It has none of the packages that have a profile of their own.
    (directory / ".cargo" / "config.toml").write_text(profile.partition("[profile.release.package.")[0])
    target = ROOT / "target" / "hello"
    subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=directory, env=os.environ | {"CARGO_TARGET_DIR": str(target)}, check=True)
    return target / "release" / "hello"


def started(program, environment):
    """Milliseconds from the start of a process to its first answer, and those that the CPU has worked."""
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])  # noqa: E731
    before = used()
    function = Function(program, environment, log=subprocess.DEVNULL)
    answer = function.invoke(http_event("GET", "/v2/", {"host": "localhost"}))
    wall = time.monotonic() - function.begun
    function.stop()
    if answer["statusCode"] != 200:
        sys.exit(f"start: {program} answers {answer}")
    return wall * 1000, (used() - before) * 1000


def main(program, rounds):
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        programs = {"hello": hello(directory), "registry": pathlib.Path(program).resolve()}
        configuration = directory / "stopover.toml"
        configuration.write_text('[access]\nanonymous = ["127.0.0.0/8"]\n')
        environment = ENVIRONMENT | {"STOPOVER_CONFIG": str(configuration)}
        taken = {name: [] for name in programs}
        for _ in range(rounds + 1):
            for name, path in programs.items():
                taken[name].append(started(path, environment))
    # The first round read the programs from the disk.
    medians = {name: [statistics.median(column) for column in zip(*times[1:])] for name, times in taken.items()}
    for name, (wall, cpu) in medians.items():
        print(f"start: {name}: {wall:.1f} ms to the first answer, {cpu:.1f} ms of the CPU; {programs[name].stat().st_size} bytes")
    wall, cpu = (ours / theirs for ours, theirs in zip(medians["registry"], medians["hello"]))
    print(f"start: {wall:.2f} times as long as a hello world, {cpu:.2f} times the CPU")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else 30)
