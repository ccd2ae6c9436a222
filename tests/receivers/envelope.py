"""Validates lines of JSON on standard input against docs/envelope.schema.json, and counts them."""

import json
import pathlib
import sys

import jsonschema

schema = json.loads((pathlib.Path(__file__).parents[2] / "docs/envelope.schema.json").read_text())
jsonschema.Draft202012Validator.check_schema(schema)
validator = jsonschema.Draft202012Validator(schema)
count = 0
for line in sys.stdin:
    envelope = json.loads(line)
    for error in validator.iter_errors(envelope):
        sys.exit(f"{error.message}: {line}")
    count += 1
print(count)
