"""What an agent does with requests: sessions, streaming, absolute-form through a proxy setting.

Arguments: the sidecar's URL, then a mode. Writes one JSON object.
"""

import json
import sys

import requests

URL, MODE = sys.argv[1:3]
ARGUMENTS = sys.argv[3:]


def session():
    agent = requests.Session()
    agent.trust_env = False
    return agent


def headers(provider, tenant):
    agent = session()
    agent.headers.update({"X-Nexus-Provider": provider, "X-Nexus-Tenant": tenant})
    first = agent.get(f"{URL}/first", params={"q": "a b"}, timeout=20)
    second = agent.post(f"{URL}/second", json={"a": 1}, timeout=20)
    return {"statuses": [first.status_code, second.status_code]}


def base_url(provider, tenant):
    answer = session().get(f"{URL}/via/{provider}@{tenant}/by-base-url", timeout=20)
    return {"statuses": [answer.status_code]}


def proxy(target):
    """The absolute form, which requests sends to a proxy."""
    answer = session().get(target, proxies={"http": URL}, timeout=20)
    return {"statuses": [answer.status_code], "error": answer.headers.get("X-Nexus-Error")}


def stream(provider):
    agent = session()
    parts = (f"part {number}\n".encode() for number in range(1000))
    answer = agent.put(f"{URL}/via/{provider}/sink", data=parts, timeout=20)
    with agent.get(f"{URL}/via/{provider}/sse/5/1", stream=True, timeout=20) as events:
        lines = [line.decode() for line in events.iter_lines() if line]
    return {"statuses": [answer.status_code, events.status_code], "events": len(lines)}


def failure(provider):
    answer = session().get(f"{URL}/via/{provider}/", timeout=20)
    return {
        "statuses": [answer.status_code],
        "error": answer.headers["X-Nexus-Error"],
        "problem": answer.json(),
        "type": answer.headers["Content-Type"],
    }


MODES = {f.__name__: f for f in (headers, base_url, proxy, stream, failure)}
json.dump(MODES[MODE](*ARGUMENTS), sys.stdout)
