#!/usr/bin/env python3
"""What `make dist` leaves in target/dist is what docs/how-to/install.md says. Run by `make dist`."""

import json
import os
import pathlib
import resource
import shlex
import shutil
import socket
import stat
import subprocess
import tarfile
import tempfile
import time
import tomllib
import unittest
import urllib.request

import kubernetes_validate
import yaml
from helm_python.chart import Chart, lint

import dist

ROOT, DIST, PACKAGING = dist.ROOT, dist.DIST, dist.PACKAGING
VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
NAME = f"stopover-{VERSION}-{dist.ARCHITECTURE}"
IMAGE = f"localhost/stopover:{VERSION}"

# Twice what it has today, most of which is code of TLS, HTTP and the store.
MOST_BYTES = 40_000_000

# Of ten, by `systemd-analyze security`: what is left is a user of its own, and the network.
MOST_EXPOSED = 1.5

# Of helm's findings: 1 is advice (an icon), 2 a warning, 3 an error.
ADVICE = 1


def run(*command, **arguments):
    """What a command prints; it has to succeed."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120, **arguments)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def wait_until_alive(port, said):
    """Until the cache answers; `said` says why it does not."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stopover/health", timeout=5) as answer:
                assert json.load(answer) == {"alive": True}
                return
        except OSError:
            assert time.monotonic() < deadline, said()
            time.sleep(0.1)


class Archive(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.directory.cleanup)
        with tarfile.open(DIST / f"{NAME}-linux.tar.gz") as archive:
            archive.extractall(cls.directory.name)
        cls.folder = pathlib.Path(cls.directory.name) / f"{NAME}-linux"
        cls.program = str(cls.folder / "stopover")

    def test_every_file_has_the_sum_that_is_written_of_it(self):
        name = f"SHA256SUMS-{dist.ARCHITECTURE}"
        sums = dict(reversed(line.split("  ")) for line in (DIST / name).read_text().splitlines())
        self.assertEqual(sorted(sums), sorted(path.name for path in DIST.iterdir() if path.name != name))
        run("sha256sum", "--check", "--strict", name, cwd=DIST)

    def test_the_program_needs_nothing_beside_it(self):
        self.assertNotIn("INTERP", run("readelf", "--wide", "--program-headers", self.program))
        self.assertNotIn("NEEDED", run("readelf", "--wide", "--dynamic", self.program))
        self.assertLess(pathlib.Path(self.program).stat().st_size, MOST_BYTES)
        self.assertEqual(run(self.program, "--version", env={}), f"stopover {VERSION}\n")

    def test_a_name_is_found_without_the_libraries_of_the_machine(self):
        # localhost is in no DNS: without the C library's own reading of /etc/hosts it would not be found.
        said = subprocess.run([self.program, "status", "--server", "http://localhost:1"], capture_output=True, text=True, env={}, timeout=60)
        self.assertEqual(said.returncode, 1)
        self.assertIn("Connection refused", said.stderr)

    def test_completions_and_manual_pages_and_a_configuration_are_there(self):
        for name in dist.COMPLETIONS.values():
            self.assertIn("prefetch", (self.folder / "completions" / name).read_text(), name)
        pages = {page.name for page in (self.folder / "man" / "man1").iterdir()}
        self.assertLessEqual({"stopover.1", "stopover-serve.1", "stopover-config-init.1"}, pages)
        self.assertIn("can be used", run(self.program, "config", "check", "--config", str(self.folder / "stopover.toml")))
        for name in ["LICENSE-APACHE", "LICENSE-MIT", "CHANGELOG.md", "stopover.service"]:
            self.assertTrue((self.folder / name).exists(), name)

    def test_the_same_files_make_the_same_archive(self):
        again = pathlib.Path(self.directory.name) / "again.tar.gz"
        for path in self.folder.rglob("*"):
            os.utime(path, (1, 1))
        dist.archive(again, self.folder, f"{NAME}-linux")
        self.assertEqual(again.read_bytes(), (DIST / f"{NAME}-linux.tar.gz").read_bytes())

    def test_the_list_of_crates_is_that_of_the_program(self):
        text = (DIST / f"sbom-{dist.ARCHITECTURE}.json").read_text()
        self.assertEqual(text, (self.folder / "sbom.json").read_text())
        crates = {component["name"] for component in json.loads(text)["components"]}
        self.assertLessEqual({"clap", "redb", "rustls"}, crates)
        self.assertFalse([name for name in crates if name.startswith("aws-")])

    def test_the_unit_is_understood_and_exposes_little(self):
        unit = pathlib.Path(self.directory.name) / "stopover.service"
        text = (self.folder / "stopover.service").read_text()
        self.assertIn("ExecStart=/usr/local/bin/stopover serve ", text)
        # Neither the program nor its pages are installed here.
        text = text.replace("/usr/local/bin/stopover", self.program).replace("Documentation=man:stopover(1)\n", "")
        unit.write_text(text)
        verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
        # It also says what is wrong with units of this machine.
        wrong = [line for line in verified.stderr.splitlines() if "stopover" in line]
        self.assertEqual(wrong, [])
        run("systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSED * 10:.0f}", "--no-pager", str(unit))

    # Systemd itself is not what runs where tests run.
    def test_the_command_of_the_unit_serves(self):
        unit = (self.folder / "stopover.service").read_text()
        [command] = [line.removeprefix("ExecStart=") for line in unit.splitlines() if line.startswith("ExecStart=")]
        with tempfile.TemporaryDirectory() as state:
            places = {"/usr/local/bin/stopover": self.program, "/etc/stopover/stopover.toml": self.folder / "stopover.toml", "${STATE_DIRECTORY}": state}
            words, port = [str(places.get(word, word)) for word in command.split()], free_port()
            environment = {"STOPOVER_LISTEN": f"127.0.0.1:{port}"}
            with subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                self.addCleanup(process.kill)
                wait_until_alive(port, process.poll)
                process.terminate()
                self.assertEqual(process.wait(30), 0)

    def test_the_changes_of_this_version_are_written(self):
        self.assertIn(f"## {VERSION}", (self.folder / "CHANGELOG.md").read_text())


    def test_the_policy_that_it_prints_is_valid_in_kubernetes(self):
        printed = run(self.program, "setup", "kubernetes", "--server=https://cache.example.com", "--upstream=docker.io", "--upstream=ghcr.io")
        kinds = []
        for document in yaml.safe_load_all(printed):
            # The first version that has this policy without a gate.
            kubernetes_validate.validate(document, "1.36", strict=True)
            kinds.append(document["kind"])
        self.assertEqual(kinds, ["MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"])

    def test_the_pod_of_actions_runner_controller_that_it_prints_is_valid_in_kubernetes(self):
        values = yaml.safe_load(run(self.program, "setup", "arc", "--server=http://10.0.0.5:5000", "--upstream=docker.io"))
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "runner"}, "spec": values["template"]["spec"]}
        kubernetes_validate.validate(pod, "1.36", strict=True)


class WithPodman(unittest.TestCase):
    """Has the image in a storage of its own."""

    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.place = pathlib.Path(directory.name)
        cls.environment = os.environ | {"STORAGE_DRIVER": "vfs"}
        storage = ["--root", f"{cls.place}/root", "--runroot", f"{cls.place}/run", "--events-backend=none"]
        # runc also where cgroups are of both versions, which crun refuses.
        cls.command = ["podman", *storage, "--cgroup-manager=cgroupfs", "--runtime=runc"]
        cls.podman = staticmethod(lambda *words: run(*cls.command, *words, env=cls.environment))
        cls.podman("load", "--quiet", "--input", str(DIST / f"{NAME}-image.tar"))
        # Where this process may not raise its limits, podman may not either.
        least = {name: min(most, resource.getrlimit(limit)[0]) for name, limit, most in [("nofile", resource.RLIMIT_NOFILE, 10000), ("nproc", resource.RLIMIT_NPROC, 1000)]}
        # Podman has a timer of systemd run the health check, which is not everywhere: tests run it themselves.
        cls.limits = ["--no-healthcheck", *(f"--ulimit={name}={limit}:{limit}" for name, limit in least.items())]

    def check_volume(self, container):
        """The volume belongs to the user of the cache, and to no other: the cache says nothing of who may read it."""
        [mount] = [mount for mount in json.loads(self.podman("container", "inspect", container))[0]["Mounts"] if mount["Type"] == "volume"]
        status = os.stat(mount["Source"])
        self.assertEqual((stat.S_IMODE(status.st_mode), status.st_uid), (0o700, 65532))
        said = subprocess.run([*self.command, "logs", container], capture_output=True, text=True, env=self.environment, timeout=60)
        self.assertIn("listening on", said.stdout + said.stderr)
        self.assertNotIn("others than its owner", said.stdout + said.stderr)


class Image(WithPodman):
    options = ["--network=host", "--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges"]

    def test_it_is_one_layer_of_an_unprivileged_user_with_a_health_check(self):
        image = json.loads(self.podman("image", "inspect", IMAGE))[0]
        self.assertEqual(image["Config"]["User"], "65532:65532")
        self.assertEqual(image["Config"]["Entrypoint"], ["/usr/bin/stopover"])
        self.assertIn("/var/lib/stopover", image["Config"]["Volumes"])
        self.assertEqual(image["Healthcheck"]["Test"], ["CMD", "/usr/bin/stopover", "health"])
        self.assertEqual(len(image["RootFS"]["Layers"]), 1)

    def test_it_serves_with_a_read_only_root_and_says_that_it_is_ready(self):
        port = free_port()
        self.podman("run", "--detach", "--name=cache", *self.options, *self.limits, f"--env=STOPOVER_LISTEN=localhost:{port}", IMAGE)
        self.addCleanup(self.podman, "rm", "--force", "--time=10", "--volumes", "cache")
        wait_until_alive(port, lambda: self.podman("ps", "--all"))
        self.check_volume("cache")
        # What the health check of the image runs.
        self.assertEqual(self.podman("exec", "cache", "/usr/bin/stopover", "health"), "ready\n")
        # Operators of the container are operators.
        self.assertEqual(self.podman("exec", "cache", "/usr/bin/stopover", "robot", "list"), "there are no robots\n")
        began = time.monotonic()
        self.podman("stop", "--time=20", "cache")
        self.assertLess(time.monotonic() - began, 15, "it does not end by SIGTERM")

    def test_it_reads_the_configuration_of_the_compose_file(self):
        mount = f"--volume={PACKAGING / 'stopover.toml'}:/etc/stopover/stopover.toml:ro"
        said = self.podman("run", "--rm", *self.options, *self.limits, mount, IMAGE, "config", "check")
        self.assertIn("(stopover.toml)", said)
        self.assertIn("everybody from 10.0.0.0/8", said)


class Compose(WithPodman):
    def test_it_names_this_image_and_what_the_image_has(self):
        service = yaml.safe_load((PACKAGING / "compose.yaml").read_text())["services"]["stopover"]
        self.assertEqual(service["image"], f"${{STOPOVER_IMAGE:-{IMAGE}}}")
        self.assertEqual(service["ports"], ["127.0.0.1:5000:5000"])
        image = (PACKAGING / "Containerfile").read_text()
        for line in ["VOLUME /var/lib/stopover", "WORKDIR /etc/stopover", "EXPOSE 5000"]:
            self.assertIn(line, image)

    def test_podman_compose_reads_it(self):
        read = yaml.safe_load(run("podman-compose", "--file", str(PACKAGING / "compose.yaml"), "config"))
        self.assertEqual(read["services"]["stopover"]["image"], IMAGE)

    def test_podman_compose_starts_it(self):
        folder, port = self.place / "cache", free_port()
        folder.mkdir()
        shutil.copy(PACKAGING / "stopover.toml", folder)
        # Another port, which nothing else on this machine has.
        text = (PACKAGING / "compose.yaml").read_text()
        (folder / "compose.yaml").write_text(text.replace("127.0.0.1:5000:5000", f"127.0.0.1:{port}:5000"))
        podman = folder / "podman"
        podman.write_text(f"#!/bin/sh\nexec {shlex.join(self.command)} \"$@\"\n")
        podman.chmod(0o755)
        compose = ["podman-compose", "--podman-path", str(podman), f"--podman-run-args={shlex.join(self.limits)}", "--file", str(folder / "compose.yaml")]
        self.addCleanup(run, *compose, "down", "--volumes", env=self.environment)
        run(*compose, "up", "--detach", env=self.environment)
        wait_until_alive(port, lambda: self.podman("ps", "--all"))
        self.check_volume("cache_stopover_1")
        self.assertEqual(self.podman("exec", "cache_stopover_1", "/usr/bin/stopover", "health"), "ready\n")


class HelmChart(unittest.TestCase):
    PATH = DIST / f"stopover-{VERSION}.tgz"
    FULL = {
        "image": "registry.example.com/stopover:1",
        "imagePullSecrets": [{"name": "pull"}],
        "env": [{"name": "DOCKERHUB_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}],
        "persistence": {"storageClass": "fast"},
        "service": {"type": "NodePort", "nodePort": 30500, "annotations": {"a": "b"}},
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "relabelings": [{"action": "labeldrop", "regex": "pod"}],
                           "basicAuth": {"username": {"name": "robot", "key": "user"}, "password": {"name": "robot", "key": "secret"}}},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
    }

    def rendered(self, values):
        with Chart.load(self.PATH) as chart:
            manifests = chart.render(values=values, name="cache", namespace="stopover")
        documents = [document for name, text in manifests.items() if name.endswith(".yaml") for document in yaml.safe_load_all(text) if document]
        return {document["kind"]: document for document in documents}

    def test_it_has_this_version_and_helm_finds_nothing_wrong(self):
        with Chart.load(self.PATH) as chart:
            self.assertEqual((chart.version, chart.metadata["appVersion"]), (VERSION, VERSION))
        for values in [{"image": "a"}, self.FULL]:
            report = lint(PACKAGING / "helm" / "stopover", values=values)
            self.assertFalse([message for message in report["messages"] if message["severity"] > ADVICE], report)

    def test_what_it_renders_is_valid_in_kubernetes(self):
        for values in [{"image": "a"}, self.FULL]:
            for kind, document in self.rendered(values).items():
                # A resource of the Prometheus operator, whose schema is not that of Kubernetes.
                if kind != "ServiceMonitor":
                    kubernetes_validate.validate(document, "1.31", strict=True)

    def test_without_an_image_it_says_what_to_set(self):
        with self.assertRaisesRegex(Exception, "--set image="):
            self.rendered({})

    def test_it_is_one_unprivileged_replica_with_a_volume_and_probes_that_ask_no_upstream(self):
        spec = self.rendered({"image": "a"})["StatefulSet"]["spec"]
        pod, claim = spec["template"]["spec"], spec["volumeClaimTemplates"][0]
        container = pod["containers"][0]
        self.assertEqual((spec["replicas"], claim["spec"]["accessModes"]), (1, ["ReadWriteOnce"]))
        self.assertEqual((pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["fsGroup"]), (True, 65532))
        self.assertEqual(container["securityContext"], {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}})
        probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ["startup", "liveness", "readiness"]}
        self.assertEqual(probes, {"startup": "/_stopover/health", "liveness": "/_stopover/health", "readiness": "/_stopover/health/ready"})

    def test_prometheus_is_told_of_the_service_only_where_it_is_wanted(self):
        self.assertNotIn("ServiceMonitor", self.rendered({"image": "a"}))
        rendered = self.rendered(self.FULL)
        monitor, service = rendered["ServiceMonitor"], rendered["Service"]
        self.assertEqual(monitor["metadata"]["labels"]["release"], "prometheus")
        chosen = monitor["spec"]["selector"]["matchLabels"].items()
        self.assertLessEqual(chosen, service["metadata"]["labels"].items())
        self.assertLessEqual(service["spec"]["selector"].items(), rendered["StatefulSet"]["spec"]["template"]["metadata"]["labels"].items())
        [endpoint] = monitor["spec"]["endpoints"]
        self.assertEqual((endpoint["path"], endpoint["port"]), ("/_stopover/metrics", service["spec"]["ports"][0]["name"]))

    def test_its_configuration_can_be_used(self):
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write(self.rendered({"image": "a"})["ConfigMap"]["data"]["stopover.toml"])
            file.flush()
            with tarfile.open(DIST / f"{NAME}-linux.tar.gz") as archive, tempfile.TemporaryDirectory() as directory:
                archive.extract(f"{NAME}-linux/stopover", directory)
                self.assertIn("can be used", run(f"{directory}/{NAME}-linux/stopover", "config", "check", "--config", file.name))


if __name__ == "__main__":
    unittest.main(verbosity=2)
