"""An agent that calls APIs without holding a credential.

Run it beside a sidecar:  python agent.py [PROVIDER] [TENANT]
"""

import os
import sys

import requests

SIDECAR = os.environ.get("NEXUS_SIDECAR_URL", "http://localhost:8080")


def named_by_headers(provider, tenant):
    """One session, two headers: the way to go where the HTTP client is yours."""
    session = requests.Session()
    session.headers["X-Nexus-Provider"] = provider
    if tenant:
        session.headers["X-Nexus-Tenant"] = tenant
    return session.get(f"{SIDECAR}/hello", params={"from": "headers"}, timeout=60)


def named_by_base_url(provider, tenant):
    """Only a base URL: the way to go where an SDK takes nothing else."""
    base_url = f"{SIDECAR}/via/{provider}@{tenant}" if tenant else f"{SIDECAR}/via/{provider}"
    return requests.post(f"{base_url}/hello", json={"from": "base URL"}, timeout=60)


def main():
    provider = sys.argv[1] if len(sys.argv) > 1 else "bearer"
    tenant = sys.argv[2] if len(sys.argv) > 2 else None
    for call in (named_by_headers, named_by_base_url):
        response = call(provider, tenant)
        print(f"{call.__name__}: {response.status_code}")
        # Tells a failure of the sidecar from an answer of the API.
        if error := response.headers.get("X-Nexus-Error"):
            sys.exit(f"{error}: {response.json()['detail']}")
        print(response.text)


if __name__ == "__main__":
    main()
