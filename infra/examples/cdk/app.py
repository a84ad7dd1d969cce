"""Stopover from the files of a release (`make package`), without Rust: docs/how-to/aws-releases.md.

    pip install aws-cdk-lib
    cdk deploy --app "python3 app.py" -c release=PATH -c bucket=BUCKET -c prefix=stopover/1.0.0/

The zips of the release are in the bucket, under the prefix, already.
"""

import aws_cdk
from aws_cdk import cloudformation_include

app = aws_cdk.App()
stack = aws_cdk.Stack(app, "stopover")
release = app.node.get_context("release")
cloudformation_include.CfnInclude(
    stack,
    "Template",
    template_file=f"{release}/template.json",
    parameters={
        "PackageBucket": app.node.get_context("bucket"),
        "PackagePrefix": app.node.get_context("prefix"),
        "Architecture": "arm64",
        "AnonymousCidrs": "203.0.113.0/24",
    },
)
aws_cdk.Tags.of(stack).add("app", "stopover")
app.synth()
