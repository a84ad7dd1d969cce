"""Compares answers with the schemas of an OpenAPI document, both as JSON on standard input; says what is wrong."""

import json
import sys

from jsonschema import Draft202012Validator

given = json.load(sys.stdin)
components = given["document"]["components"]
for name, schema in components["schemas"].items():
    Draft202012Validator.check_schema(schema)
for answer in given["answers"]:
    # References are resolved within a schema: the components become a part of it.
    validator = Draft202012Validator(answer["schema"] | {"components": components})
    for error in validator.iter_errors(answer["body"]):
        print(f"{answer['what']}: {error.json_path}: {error.message}")
