#!/usr/bin/env python3
"""The whole deployment on this machine: the template deployed to an emulator of AWS, the functions with the environment that they have
there, and a registry as their upstream. Ctrl-C ends all of it.

    make local-aws
    infra/local.py PROGRAMS [--watch] [--check]

with the programs `registry` and `filler` of this directory. --watch has `cargo lambda watch` build and run the registry function, anew after
each change; --check pulls and ends.

Clients find the cache on port 5080. What the functions have printed is in .aws-sam/local, and so is their environment: for
`sam local start-api` (environment.json).
"""

import base64
import functools
import hashlib
import json
import os
import pathlib
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from urllib.parse import unquote, urlsplit

sys.dont_write_bytecode = True
import rehearse  # noqa: E402, beside this file
from runtime import Failed, Function, Quiet, http_event, serve  # noqa: E402

KEPT = rehearse.ROOT / ".aws-sam" / "local"
PORT = int(os.environ.get("STOPOVER_LOCAL_PORT", "5080"))
# How long it may take to build the registry function from nothing.
BUILD = 1200
IMAGE = "upstream.test/team/hello"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
PARAMETERS = {"AnonymousCidrs": "127.0.0.0/8"}
# Credentials for the emulator, as rehearse.py has them: they are valid nowhere else.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-1"}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def call(url, method="GET", data=None, headers=None):
    request = urllib.request.Request(url, data, headers or {}, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return answer.headers, answer.read()


def upstream(directory):
    """A registry with one image, and where it is."""
    url = f"http://127.0.0.1:{free_port()}"
    settings = {"version": 0.1, "storage": {"filesystem": {"rootdirectory": str(directory / "upstream")}}, "http": {"addr": url[7:]}}
    (directory / "upstream.yml").write_text(json.dumps(settings))
    log = (KEPT / "upstream.log").open("wb")
    process = subprocess.Popen(["docker-registry", "serve", directory / "upstream.yml"], stdout=log, stderr=log)
    until(lambda: call(f"{url}/v2/"), "the upstream does not start")

    def push(content, kind):
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        where = call(f"{url}/v2/team/hello/blobs/uploads/", "POST")[0]["location"]
        call(f"{where}&digest={digest}", "PUT", content, {"Content-Type": "application/octet-stream"})
        return {"mediaType": kind, "digest": digest, "size": len(content)}

    # A tar archive without a file in it.
    layer = push(bytes(10240), "application/vnd.oci.image.layer.v1.tar")
    machine = "arm64" if platform.machine() in ("aarch64", "arm64") else "amd64"
    config = {"architecture": machine, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}
    config = push(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}
    call(f"{url}/v2/team/hello/manifests/latest", "PUT", json.dumps(manifest).encode(), {"Content-Type": MANIFEST})
    return process, url


def until(attempt, otherwise, seconds=60):
    end = time.monotonic() + seconds
    while True:
        try:
            if (got := attempt()) is not False:
                return got
        except (OSError, Failed):
            pass
        if time.monotonic() > end:
            raise SystemExit(f"local-aws: {otherwise}; see {KEPT.relative_to(rehearse.ROOT)}")
        time.sleep(0.1)


def deployed(directory, endpoint):
    """Deploys the template; the outputs of the stack, and the environment of each function as CloudFormation has filled it in."""
    import boto3  # comes with the SAM CLI

    outputs = rehearse.deploy("local-aws", directory, rehearse.newest(), PARAMETERS, endpoint)
    client = lambda service: boto3.client(service, endpoint_url=endpoint, region_name="eu-west-1", aws_access_key_id="test", aws_secret_access_key="test")  # noqa: E731
    found = {name: function for function in client("lambda").list_functions()["Functions"] for name in ("Registry", "Filler") if name in function["FunctionName"]}
    functions = {name.lower(): function["Environment"]["Variables"] for name, function in found.items()}
    # Where CloudFormation has the ARN of a secret, the emulator has its name; and it does not keep to ExcludePunctuation.
    for variables in functions.values():
        name = variables["STOPOVER_SIGNING_KEYS_SECRET"].removesuffix("#keys")
        kept = client("secretsmanager").put_secret_value(SecretId=name, SecretString=json.dumps({"keys": os.urandom(32).hex()}))
        variables["STOPOVER_SIGNING_KEYS_SECRET"] = kept["ARN"] + "#keys"
    return outputs, functions, client("sqs")


def front(registry):
    class Front(Quiet):
        def go(self):
            url, body = urlsplit(self.path), self.body()
            headers = {}
            for name, value in self.headers.items():
                headers[name.lower()] = f"{headers[name.lower()]},{value}" if name.lower() in headers else value
            event = http_event(self.command, unquote(url.path), headers, url.query)
            if body:
                event |= {"body": base64.b64encode(body).decode(), "isBase64Encoded": True}
            try:
                answer = registry.invoke(event)
            except Failed as error:
                print(f"local-aws: {self.command} {url.path}: {error}", file=sys.stderr)
                return self.answer(502, (), b'{"message":"Internal Server Error"}')
            text = answer.get("body") or ""
            data = base64.b64decode(text) if answer.get("isBase64Encoded") else text.encode()
            told = answer.get("headers") or {}
            length = next((value for name, value in told.items() if name.lower() == "content-length"), None)
            self.answer(answer["statusCode"], [pair for pair in told.items() if pair[0].lower() != "content-length"], data, length)

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = go

    serve(Front, PORT)


def watched(log):
    """The registry function, built and run by cargo-lambda: on the cache's port, which is no API Gateway then."""
    command = ["cargo", "lambda", "watch", "--package", "functions", "--bin", "registry", "--env-file", KEPT / "environment"]
    process = subprocess.Popen([*command, "--invoke-address", "127.0.0.1", "--invoke-port", str(PORT)], cwd=rehearse.ROOT, stdout=log, stderr=log, start_new_session=True)
    # It has processes of its own: cargo, and the function.
    return lambda: os.killpg(process.pid, signal.SIGKILL)


def work_off(sqs, queue, filler):
    """As an event source: a message that the function does not give back is done."""
    while True:
        try:
            messages = sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=1, AttributeNames=["All"]).get("Messages", [])
            for message in messages:
                record = {"messageId": message["MessageId"], "receiptHandle": message["ReceiptHandle"], "body": message["Body"]}
                arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
                record |= {"attributes": message.get("Attributes", {}), "messageAttributes": {}, "eventSource": "aws:sqs", "eventSourceARN": arn}
                if not filler.invoke({"Records": [record]}).get("batchItemFailures"):
                    sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
        except Exception as error:  # noqa: BLE001, the queue is polled as long as this runs
            print(f"local-aws: {queue}: {error}", file=sys.stderr)
            time.sleep(1)


def check(cache, url):
    """Pulls as clients do: by tag, then each blob, and again when they are filled."""
    accept = {"Accept": MANIFEST}
    _, manifest = call(f"{cache}/v2/{IMAGE}/manifests/latest", headers=accept)
    if manifest != call(f"{url}/v2/team/hello/manifests/latest", headers=accept)[1]:
        raise SystemExit("local-aws: the manifest is another one")

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_):
            return None

    def stored(path):
        """From the bucket, not from upstream."""
        try:
            urllib.request.build_opener(Stay, urllib.request.ProxyHandler({})).open(f"{cache}{path}", timeout=60)
        except urllib.error.HTTPError as answer:
            return answer.code == 307 and not answer.headers["location"].startswith(url)
        return False

    read = json.loads(manifest)
    for blob in [read["config"], *read["layers"]]:
        path = f"/v2/{IMAGE}/blobs/{blob['digest']}"
        for _ in ("cold", "warm"):
            _, content = call(f"{cache}{path}")
            if f"sha256:{hashlib.sha256(content).hexdigest()}" != blob["digest"]:
                raise SystemExit(f"local-aws: {path} is something else")
            until(lambda path=path: stored(path), f"{path} is not filled")


def pulling(cache, url, during):
    """What `during` returns. Meanwhile, and once after it, clients pull; a pull that fails is an error."""
    over, pulls, failed = threading.Event(), 0, []

    def pull():
        nonlocal pulls
        try:
            while True:
                last = over.is_set()
                check(cache, url)
                pulls += 1
                if last:
                    return
        except BaseException as error:  # noqa: BLE001, of a thread nobody else would hear
            failed.append(error)

    thread = threading.Thread(target=pull, daemon=True)
    thread.start()
    try:
        returned = during()
    finally:
        over.set()
        thread.join()
    if failed:
        raise SystemExit(f"local-aws: a pull failed meanwhile: {failed[0]!r}")
    print(f"local-aws: {pulls} pulls meanwhile", flush=True)
    return returned


def keep_environment(environment, configuration):
    told = environment | {"STOPOVER_CONFIG": str(configuration)}
    (KEPT / "environment").write_text("".join(f"{name}={value}\n" for name, value in told.items()))
    # In a container the configuration is that of the layer.
    (KEPT / "environment.json").write_text(json.dumps({"RegistryFunction": environment}, indent=1) + "\n")


def main(programs, watch, only_check):
    programs = pathlib.Path(programs).resolve()
    KEPT.mkdir(parents=True, exist_ok=True)
    started = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        try:
            process, url = upstream(directory)
            started.append(process.kill)
            port = free_port()
            emulator = rehearse.started(port, directory)
            started.append(emulator.kill)
            endpoint = f"http://127.0.0.1:{port}"
            outputs, functions, sqs = deployed(directory, endpoint)
            configuration = KEPT / "stopover.toml"
            # A login needs HTTPS, which is not spoken here: every caller on this machine is let in without.
            configuration.write_text(f'[upstreams."upstream.test"]\nurl = "{url}"\n\n[access]\nanonymous = ["127.0.0.0/8"]\n')
            told = CREDENTIALS | {"AWS_ENDPOINT_URL": endpoint}
            run = {}
            for name, seconds, processes in (("filler", 900, 2),) if watch else (("registry", 30, 4), ("filler", 900, 2)):
                environment = told | functions[name] | {"STOPOVER_CONFIG": str(configuration)}
                run[name] = Function(programs / name, environment, processes, seconds, (KEPT / f"{name}.log").open("wb"))
                started.append(run[name].stop)
            for queue in ("STOPOVER_QUEUE_URL", "STOPOVER_BACKGROUND_QUEUE_URL"):
                for _ in range(2):
                    threading.Thread(target=work_off, args=(sqs, functions["filler"][queue], run["filler"]), daemon=True).start()
            keep_environment(told | functions["registry"], configuration)
            cache = f"http://127.0.0.1:{PORT}"
            if watch:
                started.append(watched((KEPT / "registry.log").open("wb")))
            else:
                front(run["registry"])
            until(lambda: call(f"{cache}/v2/"), "the registry function does not answer", BUILD if watch else 60)
            if only_check:
                check(cache, url)
                print(f"local-aws: pulled {IMAGE}, cold and warm", flush=True)
                # Back to the template before, and here again: what is stored is served all the time.
                if before := rehearse.template_before():
                    for name, text, more in (("go back", before, {"LogRetentionDays": "7"}), ("upgrade", rehearse.newest(), {})):
                        deploy = functools.partial(rehearse.deploy, f"local-aws: {name}", directory, text, PARAMETERS | more, endpoint)
                        rehearse.stays(outputs, pulling(cache, url, deploy))
                return
            print(f"local-aws: the cache is {cache}, AWS is {endpoint}, the upstream is {url}; logs are in .aws-sam/local. Ctrl-C ends them. Now:\n")
            print(f"  skopeo inspect --tls-verify=false docker://127.0.0.1:{PORT}/{IMAGE}:latest")
            print(f"  skopeo copy --src-tls-verify=false docker://127.0.0.1:{PORT}/{IMAGE}:latest dir:/tmp/hello", flush=True)
            signal.pause()
        except KeyboardInterrupt:
            print()
        finally:
            for stop in reversed(started):
                stop()


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--watch", "--check")]
    if len(arguments) != 1:
        sys.exit(__doc__)
    main(arguments[0], "--watch" in sys.argv, "--check" in sys.argv)
