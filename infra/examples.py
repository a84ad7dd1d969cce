#!/usr/bin/env python3
"""Checks the examples of infra/examples against the files of a release: what Terraform is written in is parsed, and the CDK makes
CloudFormation's template of its own. Nobody is deployed to.

    make rehearsal

hcl2 and the CDK, a quarter of a gigabyte that runs on Node.js, are installed the first time.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
import template  # noqa: E402, beside this file

EXAMPLES = template.ROOT / "infra" / "examples"
PACKAGES = ["python-hcl2==8.1.4", "aws-cdk-lib==2.275.0"]
PARSE = "import hcl2, json, sys; json.dump(hcl2.load(sys.stdin), sys.stdout)"


def run(command, **arguments):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **arguments)
    if done.returncode:
        raise SystemExit(f"examples: {' '.join(map(str, command))}\n{done.stdout[-5000:]}")
    return done.stdout


def differ(what, found, wanted):
    if found != wanted:
        raise SystemExit(f"examples: {what}: {found} instead of {wanted}")


def terraform(python, release):
    """It hands over the template with parameters that there are, and uploads the zips that the template names."""
    with (EXAMPLES / "terraform" / "main.tf").open() as file:
        parsed = json.loads(run([python, "-c", PARSE], stdin=file))
    plain = lambda text: text.strip('"')  # noqa: E731, names and texts are parsed with their quotes
    resources = {plain(kind): one for resource in parsed["resource"] for kind, one in resource.items()}
    stack = next(iter(resources["aws_cloudformation_stack"].values()))
    given = {plain(name): plain(value) for name, value in stack["parameters"].items()}
    differ("parameters that there are not", given.keys() - release["Parameters"].keys(), set())
    uploaded = next(iter(resources["aws_s3_object"].values()))["for_each"]
    wanted = {zipped.replace("${Architecture}", given["Architecture"]) for zipped in zips(release)}
    differ("zips that are not uploaded", {zipped for zipped in wanted if f'"{zipped}"' not in uploaded}, set())


def zips(release):
    """What the template wants in the bucket, below the prefix."""
    code = [one["Properties"].get("Code") or one["Properties"].get("Content") for one in release["Resources"].values()]
    keys = [one["S3Key"]["Fn::Sub"] for one in code if one]
    return {key.removeprefix("${PackagePrefix}") for key in keys}


def cdk(python, directory, release):
    """What it makes is the template, with what the example has chosen."""
    context = {"release": str(directory), "bucket": "a-bucket", "prefix": "stopover/1.0.0/"}
    output = directory / "out"
    environment = {"CDK_CONTEXT_JSON": json.dumps(context), "CDK_OUTDIR": str(output), "JSII_SILENCE_WARNING_UNTESTED_NODE_VERSION": "1"}
    run([python, EXAMPLES / "cdk" / "app.py"], env=os.environ | environment, cwd=directory)
    made = json.loads((output / "stopover.template.json").read_text())
    lacking = {name for name, one in release["Resources"].items() if made["Resources"].get(name, {}).get("Type") != one["Type"]}
    differ("resources that the CDK leaves out", lacking, set())
    given = {"PackageBucket", "PackagePrefix", "Architecture", "AnonymousCidrs"}
    differ("parameters that stay", set(made["Parameters"]) - {"BootstrapVersion"}, release["Parameters"].keys() - given)
    differ("where the CDK has the zips", made["Resources"]["RegistryFunction"]["Properties"]["Code"]["S3Bucket"], context["bucket"])


def main():
    python = template.installed("examples", *PACKAGES, program="python")
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        release = template.transformed()
        (directory / "template.json").write_text(json.dumps(release))
        terraform(python, release)
        cdk(python, directory, release)
    print("examples: Terraform's is parsed, the CDK's makes the template of the release")


if __name__ == "__main__":
    main()
