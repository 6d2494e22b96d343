"""Requests without a pause until a file exists: load.py PATH END prints how many there were, and what failed."""

import json
import os
import sys
import time

import requests

url = os.environ["NEXUS_SIDECAR_URL"] + sys.argv[1]
session = requests.Session()
count, slowest, failures = 0, 0.0, []
while not os.path.exists(sys.argv[2]):
    start = time.monotonic()
    try:
        answer = session.get(url, timeout=20)
        if answer.status_code != 200:
            failures.append(f"{answer.status_code} {answer.headers.get('X-Nexus-Error')} {answer.text[:200]}")
    except requests.RequestException as error:
        failures.append(repr(error))
    count += 1
    slowest = max(slowest, time.monotonic() - start)
    time.sleep(0.02)
print(json.dumps({"count": count, "slowest": slowest, "failures": failures}))
