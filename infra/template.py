#!/usr/bin/env python3
"""What CloudFormation gets: template.yaml after the transform of SAM, which needs neither an account nor a network.

    infra/template.py check            lints it for each set of parameters in PARAMETERS
    infra/template.py transform FILE   writes it, for those who have the zips of a release in a bucket of their own

With `transform` the two parameters PackageBucket and PackagePrefix say where the zips are.
"""

import argparse
import json
import os
import pathlib
import sys

from cfnlint.api import lint
from cfnlint.config import ManualArgs
from samcli.yamlhelper import yaml_parse
from samtranslator.translator.transform import transform

# The transform wants to know a region, though nothing of it gets into the result.
os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")

ROOT = pathlib.Path(__file__).resolve().parent.parent

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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check")
    commands.add_parser("transform").add_argument("file", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.command == "check":
        return 1 if check() else 0
    arguments.file.write_text(json.dumps(transformed(), separators=(",", ":")) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
