#!/usr/bin/env python3
"""Rehearses the user's own commands on an emulator of AWS: `sam deploy` with samconfig.toml for each set of parameters of
infra/template.py, of the template before this one, an upgrade to this one, the way back, and `sam delete`. What is stored has to stay
where it is. Says how long each takes.

    make rehearsal
    infra/rehearse.py [SET...]      some of these sets, by the names that infra/template.py has for them

The emulator (ministack) is installed the first time. The programs of the functions are not run here: tests/functions does that. What
the emulator cannot do is left out of its template, and named.
"""

import os
import pathlib
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

from samcli.yamlhelper import yaml_parse

sys.dont_write_bytecode = True
import template  # noqa: E402, beside this file

ROOT = pathlib.Path(__file__).resolve().parent.parent
EMULATOR = "ministack[full]==1.5.33"
STACK = "stopover"  # as samconfig.toml calls it

# Alarms that compute something from several metrics, which the emulator refuses.
UNKNOWN_TO_THE_EMULATOR = ["ApiErrorsAlarm", "ThrottlesAlarm", "TableThrottlesAlarm"]


def newest():
    text = (ROOT / "template.yaml").read_text()
    assert all(f"\n  {name}:\n" in text for name in UNKNOWN_TO_THE_EMULATOR)
    return text


def template_before():
    """The template of the release before; where there is none, the one before its last change. None: git knows neither."""

    def git(*arguments):
        done = subprocess.run(["git", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return done.stdout if done.returncode == 0 else ""

    changes = git("log", "-2", "--format=%H", "--", "template.yaml").split()
    commit = git("describe", "--tags", "--abbrev=0", "--match=v*", "HEAD^").strip() or (changes[1] if len(changes) == 2 else None)
    return git("show", f"{commit}:template.yaml") if commit else None


def deployable(directory, text):
    """A template with functions that are there: nothing is built for a rehearsal."""
    text = re.sub(r"    Metadata:\n      BuildMethod: .*\n      BuildProperties:\n        Binary: .*\n", "", text)
    for name in UNKNOWN_TO_THE_EMULATOR:
        text = re.sub(rf"\n  {name}:\n(?:    .*\n|\n)*", "\n", text)
    for name in ("registry", "filler"):
        (directory / name).mkdir(exist_ok=True)
        program = directory / name / "bootstrap"
        program.write_text(f"#!/bin/sh\nexit 1 # {name}\n")
        program.chmod(0o755)
        text = text.replace("CodeUri: functions\n", f"CodeUri: {directory / name}\n", 1)
    text = text.replace("ContentUri: infra/config\n", f"ContentUri: {ROOT / 'infra' / 'config'}\n")
    (directory / "template.yaml").write_text(text)


def deploy(name, directory, text, parameters, endpoint):
    """What a user does: adds parameters to their line of samconfig.toml, and deploys the template beside it. Its outputs."""
    import boto3  # comes with the SAM CLI

    deployable(directory, text)
    machine = "arm64" if platform.machine() in ("aarch64", "arm64") else "x86_64"
    architecture = parameters.get("Architecture", machine)
    # A template before this one may have less of them.
    known = yaml_parse(text)["Parameters"]
    listed = {key: ",".join(value) if isinstance(value, list) else value for key, value in parameters.items() if key in known}
    line = f'parameter_overrides = ["Architecture={architecture}"'
    settings = (ROOT / "samconfig.toml").read_text()
    assert settings.count(line) == 1, line
    overrides = "".join(f', "{key}={value}"' for key, value in listed.items() if key != "Architecture")
    (directory / "samconfig.toml").write_text(settings.replace(line, line + overrides))
    command = ["sam", "deploy", "--config-env", architecture, "--no-confirm-changeset"]
    run(name, command, environment(endpoint), "Successfully created/updated stack", directory)
    client = boto3.client("cloudformation", endpoint_url=endpoint, region_name="eu-west-1", aws_access_key_id="test", aws_secret_access_key="test")
    outputs = client.describe_stacks(StackName=STACK)["Stacks"][0]["Outputs"]
    return {output["OutputKey"]: output["OutputValue"] for output in outputs}


def environment(endpoint):
    """Credentials that are valid nowhere but there."""
    told = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    return os.environ | told | {"AWS_DEFAULT_REGION": "eu-west-1", "SAM_CLI_TELEMETRY": "0"}


def stays(before, after):
    """What is stored, and what waits to be, is where it was."""
    for output in ("TableName", "BucketName", "FillQueueUrl", "BackgroundFillQueueUrl", "DeadFillQueueUrl", "MirrorEndpoint"):
        if before[output] != after[output]:
            raise SystemExit(f"rehearsal: {output} was {before[output]}, and is {after[output]}")


def started(port, directory):
    # BIND_HOST and IOT_MTLS_ENABLED leave it one socket, on this machine.
    environment = os.environ | {"BIND_HOST": "127.0.0.1", "IOT_MTLS_ENABLED": "0", "GATEWAY_PORT": str(port), "HOME": str(directory)}
    log = (directory / "emulator.log").open("wb")
    process = subprocess.Popen([template.installed("ministack", EMULATOR)], env=environment, stdout=log, stderr=log, cwd=directory)
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


def main(sets):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        if (before := template_before()) is None:
            print("rehearsal: git has no template before this one: THE WAY BACK IS NOT TRIED", flush=True)
            before = newest()
        emulator = started(port, directory)
        try:
            endpoint = f"http://127.0.0.1:{port}"
            for number, (name, parameters) in enumerate(template.PARAMETERS.items()):
                if sets and name not in sets:
                    continue
                chosen = {"AnonymousCidrs": "192.0.2.0/24"} | parameters
                if "DomainName" in chosen:
                    # A name is that of one stack.
                    chosen["DomainName"] = f"cache{number}.example.com"
                # Each time another value: where no more than the release has changed, there would be nothing to deploy.
                one, other = ({"LogRetentionDays": days} for days in ("14", "7"))
                first = deploy(f"{name}: deploy", directory, before, chosen | one, endpoint)
                stays(first, deploy(f"{name}: upgrade", directory, newest(), chosen | other, endpoint))
                stays(first, deploy(f"{name}: go back", directory, before, chosen | one, endpoint))
                delete = ["sam", "delete", "--stack-name", STACK, "--no-prompts", "--region", "eu-west-1"]
                run(f"{name}: delete", delete, environment(endpoint), "Deleted successfully", directory)
        finally:
            emulator.send_signal(signal.SIGTERM)
            try:
                emulator.wait(10)
            except subprocess.TimeoutExpired:
                emulator.kill()
                emulator.wait()


if __name__ == "__main__":
    if unknown := set(sys.argv[1:]) - template.PARAMETERS.keys():
        sys.exit(f"rehearsal: {', '.join(unknown)} is none of {', '.join(template.PARAMETERS)}")
    main(sys.argv[1:])
