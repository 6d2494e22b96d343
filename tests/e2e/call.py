"""One request of an agent: call.py METHOD URL [NAME:VALUE]... prints status, headers and content as JSON."""

import json
import os
import sys

import requests

requests.packages.urllib3.disable_warnings()
method, url, *headers = sys.argv[1:]
if url.startswith("/"):
    url = os.environ["NEXUS_SIDECAR_URL"] + url
named = dict(header.split(": ", 1) for header in headers)
try:
    answer = requests.request(method, url, headers=named, timeout=20, allow_redirects=False, verify=False)
    fields = {name.lower(): value for name, value in answer.headers.items()}
    reply = {"status": answer.status_code, "headers": fields, "body": answer.text}
except requests.RequestException as error:
    reply = {"status": 0, "headers": {}, "body": repr(error)}
print(json.dumps(reply))
