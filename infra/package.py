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

import json
import subprocess
import sys
import zipfile

from sbom import ROOT, bill_of_materials, write_sums

BUILD, RELEASE = ROOT / ".aws-sam" / "build", ROOT / ".aws-sam" / "release"
TARGETS = {"arm64": "aarch64-unknown-linux-gnu", "x86_64": "x86_64-unknown-linux-gnu"}


def zipped(name, path, called, mode):
    """A zip with one file in it."""
    entry = zipfile.ZipInfo(called, date_time=(1980, 1, 1, 0, 0, 0))
    entry.create_system, entry.external_attr = 3, (0o100000 | mode) << 16
    with zipfile.ZipFile(RELEASE / name, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr(entry, path.read_bytes(), compress_type=zipfile.ZIP_DEFLATED)


def main(architecture):
    RELEASE.mkdir(parents=True, exist_ok=True)
    zipped(f"registry-{architecture}.zip", BUILD / "RegistryFunction" / "bootstrap", "bootstrap", 0o755)
    zipped(f"filler-{architecture}.zip", BUILD / "FillerFunction" / "bootstrap", "bootstrap", 0o755)
    zipped("configuration.zip", ROOT / "infra" / "config" / "stopover.toml", "stopover.toml", 0o644)
    subprocess.run([sys.executable, ROOT / "infra" / "template.py", "transform", RELEASE / "template.json"], check=True)
    (RELEASE / f"sbom-{architecture}.json").write_text(json.dumps(bill_of_materials("functions", TARGETS[architecture]), indent=1) + "\n")
    files = write_sums(RELEASE)
    for path in files:
        print(f"package: {path.relative_to(ROOT)} {path.stat().st_size}")


if __name__ == "__main__":
    if sys.argv[1:] not in [[architecture] for architecture in TARGETS]:
        sys.exit(__doc__)
    main(sys.argv[1])
