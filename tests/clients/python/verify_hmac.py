"""Computes an HMAC with Python's own module.

Reads JSON: secret, body_base64, algorithm (sha1 or sha256), encoding (hex or base64). Writes JSON: signature.
"""

import base64
import hmac
import json
import sys


def main():
    question = json.load(sys.stdin)
    body = base64.b64decode(question["body_base64"])
    mac = hmac.new(question["secret"].encode(), body, question["algorithm"])
    encoded = {
        "hex": mac.hexdigest(),
        "base64": base64.b64encode(mac.digest()).decode(),
    }
    json.dump({"signature": encoded[question["encoding"]]}, sys.stdout)


if __name__ == "__main__":
    main()
