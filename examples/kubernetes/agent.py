"""An agent in a pod with a sidecar: agent.py PROVIDER TENANT PATH [SECONDS]

Calls an API as the tenant, once or every so many seconds. It holds no credential and needs no SDK.
"""

import os
import sys
import time

import requests

provider, tenant, path = sys.argv[1:4]
session = requests.Session()
session.headers.update({"X-Nexus-Provider": provider, "X-Nexus-Tenant": tenant})
while True:
    answer = session.get(os.environ["NEXUS_SIDECAR_URL"] + path, timeout=60)
    print(answer.status_code, answer.text, flush=True)
    if len(sys.argv) < 5:
        sys.exit(0 if answer.ok else 1)
    time.sleep(float(sys.argv[4]))
