#!/usr/bin/env python3
"""Makes a release of the program for machines without Rust, in target/dist:

    stopover-VERSION-ARCHITECTURE-linux.tar.gz    the program, completions, manual pages, a first stopover.toml, a systemd unit
    stopover-VERSION-ARCHITECTURE-image.tar       the container image, for `podman load` and `docker load`
    stopover-VERSION.tgz                          the Helm chart
    sbom-ARCHITECTURE.json                        what the program is made of (CycloneDX 1.5); in the archive and the image too
    SHA256SUMS-ARCHITECTURE                       of all of these

    infra/dist.py PROGRAM

The same program makes the same archives: times and owners are not in them. PROGRAM has to be static: nothing is beside it in
the image.
"""

import gzip
import io
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile

from sbom import ROOT, bill_of_materials, write_sums

DIST, PACKAGING = ROOT / "target" / "dist", ROOT / "packaging"
ARCHITECTURE = {"arm64": "aarch64"}.get(platform.machine(), platform.machine())
CERTIFICATES = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")
COMPLETIONS = {"bash": "stopover.bash", "zsh": "_stopover", "fish": "stopover.fish"}


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def archive(path, folder, called):
    """A tar.gz of a folder; the same for the same files, whoever made them and when."""

    def plain(entry):
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
        return entry

    packed = io.BytesIO()
    # Entries of a directory are added in the order of their names.
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(folder, arcname=called, filter=plain)
    with path.open("wb") as file, gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0, compresslevel=9) as zipped:
        zipped.write(packed.getvalue())


def fill(folder, program):
    """What the archive has; returns the list of crates."""
    shutil.copy(program, folder / "stopover")
    (folder / "stopover").chmod(0o755)
    (folder / "completions").mkdir()
    for shell, name in COMPLETIONS.items():
        (folder / "completions" / name).write_bytes(output(program, "completions", shell))
    subprocess.run([program, "man", folder / "man" / "man1"], check=True)
    subprocess.run([program, "config", "init", folder / "stopover.toml"], check=True, stdout=subprocess.DEVNULL)
    for name in ["LICENSE-APACHE", "LICENSE-MIT", "CHANGELOG.md", "packaging/stopover.service"]:
        shutil.copy(ROOT / name, folder)
    materials = json.dumps(bill_of_materials("stopover", f"{ARCHITECTURE}-unknown-linux-gnu"), indent=1) + "\n"
    (folder / "sbom.json").write_text(materials)
    return materials


def image(folder, version, path):
    """The container image, built without root and without mounts: only files are copied."""
    if not CERTIFICATES.exists():
        sys.exit(f"dist: {CERTIFICATES} is not there: install ca-certificates")
    shutil.copy(CERTIFICATES, folder)
    (folder / "passwd").write_text("stopover:x:65532:65532::/var/lib/stopover:/nonexistent\n")
    (folder / "lib").mkdir()
    (folder / "lib" / "stopover").mkdir(mode=0o700)
    name = f"localhost/stopover:{version}"
    with tempfile.TemporaryDirectory() as storage:
        environment = os.environ | {"STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}
        buildah = ["buildah", "--root", f"{storage}/root", "--runroot", f"{storage}/run"]
        containerfile = ["--file", PACKAGING / "Containerfile", "--timestamp=0", "--squash", "--quiet"]
        # The format of Docker: that of OCI has no health check.
        built = [*buildah, "build", "--format=docker", "--tag", name, *containerfile, folder]
        subprocess.run(built, check=True, env=environment, stdout=subprocess.DEVNULL)
        path.unlink(missing_ok=True)
        subprocess.run([*buildah, "push", "--quiet", name, f"docker-archive:{path}:{name}"], check=True, env=environment)


def main(program):
    version = output(program, "--version").decode().split()[1]
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir(parents=True)
    name = f"stopover-{version}-{ARCHITECTURE}"
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        (DIST / f"sbom-{ARCHITECTURE}.json").write_text(fill(folder, program))
        archive(DIST / f"{name}-linux.tar.gz", folder, f"{name}-linux")
        image(folder, version, DIST / f"{name}-image.tar")
    archive(DIST / f"stopover-{version}.tgz", PACKAGING / "helm" / "stopover", "stopover")
    for path in write_sums(DIST, f"SHA256SUMS-{ARCHITECTURE}"):
        print(f"dist: {path.relative_to(ROOT)} {path.stat().st_size}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(str(pathlib.Path(sys.argv[1]).resolve()))
