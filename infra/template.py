#!/usr/bin/env python3
"""What CloudFormation gets: template.yaml after the transform of SAM, which needs neither an account nor a network.

    infra/template.py check            lints it for each set of parameters in PARAMETERS
    infra/template.py checkov          compares what checkov finds in each with docs/reference/template.md; installs it the first time
    infra/template.py transform FILE   writes it, for those who have the zips of a release in a bucket of their own

With `transform` the two parameters PackageBucket and PackagePrefix say where the zips are.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from cfnlint.api import lint
from cfnlint.config import ManualArgs
from samcli.yamlhelper import yaml_parse
from samtranslator.translator.transform import transform

# The transform wants to know a region, though nothing of it gets into the result.
os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHECKOV = "checkov==3.3.30"

NAME = {
    "DomainName": "cache.example.com",
    "CertificateArn": "arn:aws:acm:eu-west-1:123456789012:certificate/12345678-1234-1234-1234-123456789012",
}

# The parameters that change which resources there are, each at least once.
PARAMETERS = {
    "as it is": {},
    "inside a VPC": NAME | {
        "VpcId": "vpc-0123456789abcdef0",
        "SubnetIds": ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"],
        "ClientCidrs": "10.0.0.0/16,100.64.0.0/10",
        "RouteTableIds": ["rtb-0123456789abcdef0"],
        "S3EndpointId": "vpce-0123456789abcdef0",
        "ConfigurationUri": "s3://bucket/a/b.toml",
        "DeletionProtection": "true",
        "Architecture": "x86_64",
    },
    "by the rules of an organization": NAME | {
        "Organization": "o-a1b2c3d4e5",
        "PrivateEcrRepositories": ["arn:aws:ecr:eu-west-1:123456789012:repository/*"],
        "UpstreamSecretArns": ["arn:aws:secretsmanager:eu-west-1:123456789012:secret:hub-AbCdEf"],
        "ConfigurationUri": "ssm:/stopover/configuration",
        "PermissionsBoundaryArn": "arn:aws:iam::123456789012:policy/boundary",
        "RolePath": "/platform/",
        "KeyArn": "arn:aws:kms:eu-west-1:123456789012:key/12345678-1234-1234-1234-123456789012",
        "AlarmTopicArn": "arn:aws:sns:eu-west-1:123456789012:alarms",
        "RegistryReservedConcurrency": "100",
        "FillerReservedConcurrency": "6",
    },
}

# Where the zips are. The one of an architecture has its name in its key: what is deployed is what was built for it.
PACKAGE = {
    "PackageBucket": {"Type": "String", "Description": "The bucket, in this region, that has the zips of the release"},
    "PackagePrefix": {"Type": "String", "Default": "", "Description": "What their keys begin with, such as stopover/1.2.3/"},
}


class NoPolicies:
    """The managed policies of AWS, of which the template names none."""

    def load(self):
        return {}


def transformed():
    template = yaml_parse((ROOT / "template.yaml").read_text())
    template["Parameters"] |= PACKAGE

    def zipped(name):
        return {"Bucket": {"Ref": "PackageBucket"}, "Key": {"Fn::Sub": "${PackagePrefix}" + name}}

    resources = template["Resources"]
    for function, name in (("RegistryFunction", "registry"), ("FillerFunction", "filler")):
        resources[function].pop("Metadata")
        resources[function]["Properties"]["CodeUri"] = zipped(name + "-${Architecture}.zip")
    resources["ConfigurationLayer"]["Properties"]["ContentUri"] = zipped("configuration.zip")
    return json.loads(json.dumps(transform(template, {}, NoPolicies())))


def check():
    """Prints what cfn-lint says, and returns how much that is."""
    text, found = json.dumps(transformed(), indent=1), 0
    for name, parameters in PARAMETERS.items():
        values = {"PackageBucket": "a-bucket-of-yours"} | parameters
        for match in lint(text, config=ManualArgs(regions=["eu-west-1"], parameters=[values])):
            print(f"template.yaml, {name}: {match}", file=sys.stderr)
            found += 1
    return found


def installed(name, *requirements, program=None):
    """A program of PyPI in an environment of its own, beside that of `make setup`, whose packages it could disagree with."""
    venv, uv = ROOT / ".venv" / name, ROOT / ".venv" / "bin" / "uv"
    complete = venv / "complete"
    if not complete.exists() or complete.read_text() != " ".join(requirements):
        subprocess.run([uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, venv], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", venv / "bin" / "python", *requirements], check=True)
        complete.write_text(" ".join(requirements))
    return venv / "bin" / (program or name)


def chosen(template, parameters):
    """What CloudFormation makes of it with these parameters: nothing depends on a condition any more."""
    values = {}
    for name, parameter in template["Parameters"].items():
        value = parameters.get(name, parameter.get("Default", ""))
        listed = parameter["Type"] == "CommaDelimitedList" and isinstance(value, str)
        values[name] = value.split(",") if listed else value

    def text(node):
        match node:
            case {"Fn::Join": [separator, texts]}:
                return separator.join(text(texts))
            case {"Ref": name}:
                return values[name]
        return node

    def holds(condition):
        match condition:
            case {"Condition": name}:
                return holds(template["Conditions"][name])
            case {"Fn::Not": [one]}:
                return not holds(one)
            case {"Fn::And": several}:
                return all(map(holds, several))
            case {"Fn::Equals": [one, other]}:
                return text(one) == text(other)
        raise ValueError(f"not modelled: {condition}")

    def part(node):
        """... is what is left out."""
        match node:
            case list():
                return [one for one in map(part, node) if one is not ...]
            case {"Ref": "AWS::NoValue"}:
                return ...
            case {"Ref": name} if name in values:
                return values[name]
            case {"Fn::If": [condition, one, other]}:
                return part(one if holds({"Condition": condition}) else other)
            case dict():
                return {key: one for key, one in ((key, part(value)) for key, value in node.items()) if one is not ...}
        return node

    resources = template["Resources"].items()
    there = {name: one for name, one in resources if "Condition" not in one or holds({"Condition": one["Condition"]})}
    plain = {name: {key: value for key, value in one.items() if key != "Condition"} for name, one in there.items()}
    return {"AWSTemplateFormatVersion": "2010-09-09", "Resources": part(plain)}


def checkov():
    """Prints how checkov's findings differ from the table of those that are meant, and returns in how many."""
    whole = transformed()
    with tempfile.TemporaryDirectory() as directory:
        for number, parameters in enumerate(PARAMETERS.values()):
            (pathlib.Path(directory) / f"{number}.json").write_text(json.dumps(chosen(whole, parameters), indent=1))
        command = [installed("checkov", CHECKOV), "--framework", "cloudformation", "--compact", "--quiet", "--skip-download"]
        # It fails where it finds something.
        done = subprocess.run([*command, "--output", "json", "--directory", directory], stdout=subprocess.PIPE, text=True)
    said = json.loads(done.stdout)
    if said["summary"]["parsing_errors"] or said["summary"]["resource_count"] < len(PARAMETERS) * 30:
        raise SystemExit(f"checkov: it could not read the template: {said['summary']}")
    found = {}
    for failed in said["results"]["failed_checks"]:
        found.setdefault(failed["check_id"], set()).add(failed["resource"].split(".")[-1])
    table = re.findall(r"^\| CKV.*", (ROOT / "docs" / "reference" / "template.md").read_text(), re.M)
    meant = {check for row in table for check in re.findall(r"CKV_\w+", row)}
    for check, resources in sorted(found.items()):
        if check not in meant:
            print(f"template.yaml: {check} in {', '.join(sorted(resources))}", file=sys.stderr)
    for check in sorted(meant - found.keys()):
        print(f"docs/reference/template.md: {check} is no longer found", file=sys.stderr)
    print(f"checkov: {said['summary']['passed']} passed, {said['summary']['failed']} failed, {len(found)} kinds")
    return len(found.keys() ^ meant)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check")
    commands.add_parser("checkov")
    commands.add_parser("transform").add_argument("file", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.command in ("check", "checkov"):
        return 1 if (check if arguments.command == "check" else checkov)() else 0
    arguments.file.write_text(json.dumps(transformed(), separators=(",", ":")) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
