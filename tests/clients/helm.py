"""Helm, asked to do what the JSON on the command line says."""

import json
import sys

from helm_python import chart
from helm_python.registry import RegistryClient

asked = json.loads(sys.argv[1])
if asked["do"] == "package":
    answer = chart.package(*asked["of"], **asked["with"])
else:
    with RegistryClient(plain_http=True, credentials_file=asked["credentials"]) as client:
        answer = getattr(client, asked["do"])(*asked["of"], **asked["with"])
print(json.dumps(answer))
