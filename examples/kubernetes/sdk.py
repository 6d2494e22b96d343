"""What an SDK does that takes only a base URL and refuses to start without a key.

Both come from annotations of the pod. The key is a placeholder, which the sidecar replaces.
"""

import os
import time

import requests

base_url, key = os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"]
while True:
    answer = requests.get(f"{base_url}/models", headers={"Authorization": f"Bearer {key}"}, timeout=60)
    print("openai", answer.status_code, answer.text, flush=True)
    # The tenant is part of this one: github@acme.
    answer = requests.get(os.environ["GITHUB_API_URL"] + "/user", timeout=60)
    print("github", answer.status_code, answer.text, flush=True)
    time.sleep(30)
