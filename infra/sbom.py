"""What a program is made of (CycloneDX 1.5): every crate that is linked into it, with its licence and the checksum of its source."""

import hashlib
import pathlib
import re
import subprocess
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent


def bill_of_materials(package, target):
    """The crates of a package of this workspace, built for a target."""
    command = ["cargo", "tree", "--locked", f"--package={package}", "--edges=normal", f"--target={target}"]
    tree = subprocess.run([*command, "--prefix=none", "--format={p}|{l}"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    linked = {(name, version[1:]): licence.removesuffix(" (*)") for name, version, licence in re.findall(r"^(\S+) ([^|\s]+)[^|]*\|(.*)$", tree.stdout, re.M)}
    locked = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    checksums = {(entry["name"], entry["version"]): entry.get("checksum") for entry in locked}
    subject = next(crate for crate in linked if crate[0] == package)
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


def write_sums(directory, name):
    """Writes the checksums of all files in a directory into one of them; returns the others."""
    files = sorted(path for path in directory.iterdir() if path.is_file() and path.name != name)
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
    (directory / name).write_text(sums)
    return files
