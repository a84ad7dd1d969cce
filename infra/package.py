#!/usr/bin/env python3
"""Makes what a deployment without Rust needs out of .aws-sam/build, in .aws-sam/release:

    registry-ARCHITECTURE.zip, filler-ARCHITECTURE.zip   the functions
    configuration.zip                                    stopover.toml, for the layer
    template.json                                        what CloudFormation gets (infra/template.py transform)
    sbom-functions-ARCHITECTURE.json                     what the functions are made of (CycloneDX 1.5)
    SHA256SUMS-functions-ARCHITECTURE                    of all of these

    infra/package.py ARCHITECTURE

The same files make the same zips: times and owners are not in them. What has no architecture in its name is the same on every
machine, so that a release can have the files of all of them side by side.
"""

import json
import shutil
import subprocess
import sys
import zipfile

from sbom import ROOT, bill_of_materials, write_sums

BUILD, RELEASE = ROOT / ".aws-sam" / "build", ROOT / ".aws-sam" / "release"
TARGETS = {"arm64": "aarch64-unknown-linux-gnu", "x86_64": "x86_64-unknown-linux-gnu"}


def zipped(name, path, called, mode, method=zipfile.ZIP_DEFLATED):
    """A zip with one file in it."""
    entry = zipfile.ZipInfo(called, date_time=(1980, 1, 1, 0, 0, 0))
    entry.create_system, entry.external_attr = 3, (0o100000 | mode) << 16
    with zipfile.ZipFile(RELEASE / name, "w", compresslevel=9) as archive:
        archive.writestr(entry, path.read_bytes(), compress_type=method)


def main(architecture):
    # What another version has left would get checksums of this one.
    shutil.rmtree(RELEASE, ignore_errors=True)
    RELEASE.mkdir(parents=True)
    zipped(f"registry-{architecture}.zip", BUILD / "RegistryFunction" / "bootstrap", "bootstrap", 0o755)
    zipped(f"filler-{architecture}.zip", BUILD / "FillerFunction" / "bootstrap", "bootstrap", 0o755)
    # Not compressed: another zlib would make another file of it.
    zipped("configuration.zip", ROOT / "infra" / "config" / "stopover.toml", "stopover.toml", 0o644, zipfile.ZIP_STORED)
    subprocess.run([sys.executable, ROOT / "infra" / "template.py", "transform", RELEASE / "template.json"], check=True)
    (RELEASE / f"sbom-functions-{architecture}.json").write_text(json.dumps(bill_of_materials("functions", TARGETS[architecture]), indent=1) + "\n")
    for path in write_sums(RELEASE, f"SHA256SUMS-functions-{architecture}"):
        print(f"package: {path.relative_to(ROOT)} {path.stat().st_size}")


if __name__ == "__main__":
    if sys.argv[1:] not in [[architecture] for architecture in TARGETS]:
        sys.exit(__doc__)
    main(sys.argv[1])
