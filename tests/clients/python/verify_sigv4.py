"""Recomputes an AWS Signature Version 4 with botocore, from the request as it arrived.

Reads JSON: method, url, headers (pairs, as received), body_sha256, service, access_key, secret_key, session_token.
Writes JSON: sent and expected signature, and whether the payload's hash is the one that was signed.
"""

import json
import sys

from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials


def parse_authorization(value):
    scheme, _, fields = value.partition(" ")
    assert scheme == "AWS4-HMAC-SHA256", scheme
    return dict(field.strip().split("=", 1) for field in fields.split(","))


def main():
    seen = json.load(sys.stdin)
    headers = {}
    for name, value in seen["headers"]:
        headers.setdefault(name.lower(), []).append(value)
    sent = parse_authorization(headers["authorization"][0])
    access_key, date, region, service, _ = sent["Credential"].split("/")
    assert access_key == seen["access_key"], access_key
    assert service == seen["service"], service

    signed = sent["SignedHeaders"].split(";")
    request = AWSRequest(method=seen["method"], url=seen["url"])
    for name in signed:
        for value in headers[name]:
            request.headers.add_header(name, value)
    request.context["timestamp"] = headers["x-amz-date"][0]

    auth_class = S3SigV4Auth if service == "s3" else SigV4Auth
    auth = auth_class(
        Credentials(access_key, seen["secret_key"], seen.get("session_token")), service, region
    )
    canonical = auth.canonical_request(request)
    string_to_sign = auth.string_to_sign(request, canonical)
    content_hash = headers.get("x-amz-content-sha256", [None])[0]
    json.dump(
        {
            "sent": sent["Signature"],
            "expected": auth.signature(string_to_sign, request),
            "canonical": canonical,
            "signed_headers": signed,
            "region": region,
            "session_token": headers.get("x-amz-security-token", [None])[0],
            "payload_hash_matches": content_hash == seen["body_sha256"],
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
