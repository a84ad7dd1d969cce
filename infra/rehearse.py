#!/usr/bin/env python3
"""Rehearses the user's own commands on an emulator of AWS: `sam deploy` for each set of parameters of infra/template.py, an upgrade
and `sam delete`. Says how long each takes.

    make rehearsal

The emulator (ministack) is installed beside .venv the first time, which takes a minute or two; `make setup` leaves it out. The programs
of the functions are not run here: tests/functions does that. What the emulator cannot do is left out of its template, and named.
"""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

sys.dont_write_bytecode = True
import template  # noqa: E402, beside this file

ROOT = pathlib.Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv" / "emulator"
EMULATOR = "ministack[full]==1.5.33"

# Alarms that compute something from several metrics, which the emulator refuses.
UNKNOWN_TO_THE_EMULATOR = ["ApiErrorsAlarm", "ThrottlesAlarm", "TableThrottlesAlarm"]


def installed():
    if not (VENV / "bin" / "ministack").exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        subprocess.run([VENV / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", EMULATOR], check=True)
    return VENV / "bin" / "ministack"


def deployable(directory):
    """The template with functions that are there: nothing is built for a rehearsal."""
    text = (ROOT / "template.yaml").read_text()
    text = re.sub(r"    Metadata:\n      BuildMethod: .*\n      BuildProperties:\n        Binary: .*\n", "", text)
    for name in UNKNOWN_TO_THE_EMULATOR:
        text, count = re.subn(rf"\n  {name}:\n(?:    .*\n|\n)*", "\n", text)
        assert count == 1, name
    for name in ("registry", "filler"):
        (directory / name).mkdir()
        program = directory / name / "bootstrap"
        program.write_text(f"#!/bin/sh\nexit 1 # {name}\n")
        program.chmod(0o755)
        text = text.replace("CodeUri: functions\n", f"CodeUri: {directory / name}\n", 1)
    text = text.replace("ContentUri: infra/config\n", f"ContentUri: {ROOT / 'infra' / 'config'}\n")
    (directory / "template.yaml").write_text(text)
    return directory / "template.yaml"


def started(port, directory):
    # BIND_HOST and IOT_MTLS_ENABLED leave it one socket, on this machine.
    environment = os.environ | {"BIND_HOST": "127.0.0.1", "IOT_MTLS_ENABLED": "0", "GATEWAY_PORT": str(port), "HOME": str(directory)}
    log = (directory / "emulator.log").open("wb")
    process = subprocess.Popen([installed()], env=environment, stdout=log, stderr=log, cwd=directory)
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_ministack/health", timeout=5)
            return process
        except urllib.error.HTTPError:
            return process
        except OSError:
            time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    raise SystemExit(f"rehearsal: the emulator does not start: {(directory / 'emulator.log').read_text()}")


def run(name, command, environment, expected, directory):
    begun = time.monotonic()
    done = subprocess.run(command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode or expected not in done.stdout:
        raise SystemExit(f"rehearsal: {name}: {' '.join(map(str, command))}\n{done.stdout[-20000:]}")
    print(f"rehearsal: {name}: {time.monotonic() - begun:.0f} s", flush=True)


def main():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        file = deployable(directory)
        emulator = started(port, directory)
        try:
            environment = os.environ | {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": "eu-west-1",
                "SAM_CLI_TELEMETRY": "0",
            }
            deploy = ["sam", "deploy", "--template-file", file, "--resolve-s3"]
            deploy += ["--capabilities", "CAPABILITY_IAM", "--no-confirm-changeset", "--stack-name"]
            for number, (name, parameters) in enumerate(template.PARAMETERS.items()):
                listed = {key: ",".join(value) if isinstance(value, list) else value for key, value in parameters.items()}
                # A name is that of one stack.
                listed = {key: value.replace("cache.", f"cache{number}.") for key, value in listed.items()}
                overrides = [f"{key}={value}" for key, value in ({"AnonymousCidrs": "192.0.2.0/24"} | listed).items()]
                stack = [*deploy, f"stack{number}", "--parameter-overrides"]
                run(f"{name}: deploy", [*stack, *overrides], environment, "Successfully created/updated stack", directory)
                run(f"{name}: upgrade", [*stack, *overrides, "LogRetentionDays=7"], environment, "Successfully created/updated stack", directory)
                delete = ["sam", "delete", "--stack-name", f"stack{number}", "--no-prompts", "--region", "eu-west-1"]
                run(f"{name}: delete", delete, environment, "Deleted successfully", directory)
        finally:
            emulator.send_signal(signal.SIGTERM)
            try:
                emulator.wait(10)
            except subprocess.TimeoutExpired:
                emulator.kill()
                emulator.wait()


if __name__ == "__main__":
    main()
