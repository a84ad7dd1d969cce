#!/usr/bin/env python3
"""Makes what a deployment without Rust needs out of .aws-sam/build, in .aws-sam/release:

    registry-ARCHITECTURE.zip, filler-ARCHITECTURE.zip   the functions
    configuration.zip                                    stopover.toml, for the layer
    template.json                                        what CloudFormation gets (infra/template.py transform)
    sbom-ARCHITECTURE.json                               what the functions are made of (CycloneDX 1.5)
    SHA256SUMS                                           of all of these

    infra/package.py ARCHITECTURE

The same files make the same zips: times and owners are not in them.
"""

import hashlib
import json
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD, RELEASE = ROOT / ".aws-sam" / "build", ROOT / ".aws-sam" / "release"
TARGETS = {"arm64": "aarch64-unknown-linux-gnu", "x86_64": "x86_64-unknown-linux-gnu"}


def zipped(name, path, called, mode):
    """A zip with one file in it."""
    entry = zipfile.ZipInfo(called, date_time=(1980, 1, 1, 0, 0, 0))
    entry.create_system, entry.external_attr = 3, (0o100000 | mode) << 16
    with zipfile.ZipFile(RELEASE / name, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr(entry, path.read_bytes(), compress_type=zipfile.ZIP_DEFLATED)


def bill_of_materials(architecture):
    """Every crate that is linked into the functions, with its licence and the checksum of its source."""
    command = ["cargo", "tree", "--locked", "--package=functions", "--edges=normal", f"--target={TARGETS[architecture]}"]
    tree = subprocess.run([*command, "--prefix=none", "--format={p}|{l}"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    linked = {(name, version[1:]): licence.removesuffix(" (*)") for name, version, licence in re.findall(r"^(\S+) ([^|\s]+)[^|]*\|(.*)$", tree.stdout, re.M)}
    locked = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    checksums = {(package["name"], package["version"]): package.get("checksum") for package in locked}
    subject = next(crate for crate in linked if crate[0] == "functions")
    del linked[subject]

    def component(name, version, licence):
        one = {"type": "library", "name": name, "version": version, "purl": f"pkg:cargo/{name}@{version}"}
        if licence:
            one["licenses"] = [{"expression": licence.replace("/", " OR ")}]
        if checksums[name, version]:
            one["hashes"] = [{"alg": "SHA-256", "content": checksums[name, version]}]
        return one

    components = [component(*crate, licence) for crate, licence in sorted(linked.items())]
    application = {"type": "application", "name": "stopover", "version": subject[1]}
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": {"component": application}, "components": components}


def main(architecture):
    RELEASE.mkdir(parents=True, exist_ok=True)
    zipped(f"registry-{architecture}.zip", BUILD / "RegistryFunction" / "bootstrap", "bootstrap", 0o755)
    zipped(f"filler-{architecture}.zip", BUILD / "FillerFunction" / "bootstrap", "bootstrap", 0o755)
    zipped("configuration.zip", ROOT / "infra" / "config" / "stopover.toml", "stopover.toml", 0o644)
    subprocess.run([sys.executable, ROOT / "infra" / "template.py", "transform", RELEASE / "template.json"], check=True)
    (RELEASE / f"sbom-{architecture}.json").write_text(json.dumps(bill_of_materials(architecture), indent=1) + "\n")
    files = sorted(path for path in RELEASE.iterdir() if path.name != "SHA256SUMS")
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
    (RELEASE / "SHA256SUMS").write_text(sums)
    for path in files:
        print(f"package: {path.relative_to(ROOT)} {path.stat().st_size}")


if __name__ == "__main__":
    if sys.argv[1:] not in [[architecture] for architecture in TARGETS]:
        sys.exit(__doc__)
    main(sys.argv[1])
