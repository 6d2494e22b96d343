"""Looks for a secret wherever this process can look, as an agent would that was taken over.

Standard input: {"masked": HEX, "mask": HEX}, so that the secret is in nobody's memory or arguments but this
process's own, which is left out. Without arguments: environments, arguments and memory of every process in sight,
every readable file, and what the sidecar answers. With `--process NAME`: only processes whose program has this name
and their files, for the positive control, in a pod that sees the whole node.

Prints {"found": [places], "tokens": [places], "files": count, "processes": count, "bytes": count}. `tokens` are
service account tokens for the audience nexus-gateway.
"""

import base64
import json
import os
import re
import stat
import sys

JWT = re.compile(rb"eyJ[A-Za-z0-9_-]{10,}\.(eyJ[A-Za-z0-9_-]{10,})\.[A-Za-z0-9_-]{20,}")
CHUNK = 16 << 20
OVERLAP = 8192


class Search:
    def __init__(self, secret):
        self.needles = {"raw": secret, "reversed": secret[::-1]}
        self.needles["hex"] = secret.hex().encode()
        for offset in range(3):
            coded = base64.b64encode(b"\0" * offset + secret)
            # Without what depends on the neighbours.
            self.needles[f"base64+{offset}"] = coded[4 if offset else 0:-4]
        self.found, self.tokens = [], []
        self.files = self.processes = self.bytes = 0

    def look(self, data, place):
        self.bytes += len(data)
        for form, needle in self.needles.items():
            if needle in data:
                self.found.append(f"{place} ({form})")
        for match in JWT.finditer(data):
            part = match.group(1)
            try:
                claims = base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
            except ValueError:
                continue
            if b"nexus-gateway" in claims:
                self.tokens.append(place)

    def file(self, path, place=None):
        try:
            # A pipe or a device would wait or never end.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            return
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            tail = b""
            try:
                while chunk := file.read(CHUNK):
                    self.look(tail + chunk, place or path)
                    tail = chunk[-OVERLAP:]
            except OSError:
                pass
        self.files += 1

    def tree(self, top):
        for folder, folders, names in os.walk(top, followlinks=False):
            inside = folder[len(top.rstrip("/")):] or "/"
            if inside == "/":
                folders[:] = [name for name in folders if name not in ("proc", "sys")]
            for name in names:
                path = os.path.join(folder, name)
                try:
                    # What a link leads to comes by its own name. /dev/core would lead to the node's memory.
                    if stat.S_ISREG(os.lstat(path).st_mode):
                        self.file(path)
                except OSError:
                    pass

    def process(self, pid):
        self.processes += 1
        for name in ("environ", "cmdline"):
            self.file(f"/proc/{pid}/{name}")
        try:
            with open(f"/proc/{pid}/maps") as maps:
                areas = [line.split() for line in maps]
            memory = open(f"/proc/{pid}/mem", "rb", buffering=0)
        except OSError:
            return
        with memory:
            for area in areas:
                if not area[1].startswith("r") or area[-1] in ("[vvar]", "[vsyscall]"):
                    continue
                start, end = (int(number, 16) for number in area[0].split("-"))
                try:
                    memory.seek(start)
                    left = end - start
                    while left > 0:
                        data = memory.read(min(left, CHUNK))
                        if not data:
                            break
                        self.look(data, f"/proc/{pid}/mem")
                        left -= len(data)
                except (OSError, ValueError, OverflowError):
                    pass


def pids():
    own = {os.getpid(), os.getppid()}
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in own]


def answers(search):
    import requests

    sidecar = os.environ["NEXUS_SIDECAR_URL"]
    for path in ("/via/upstream/echo", "/via/upstream/echo?debug=1", "/via/upstream/nothing", "/", "/metrics"):
        for method in ("GET", "POST", "OPTIONS"):
            answer = requests.request(method, sidecar + path, timeout=20)
            said = repr(answer.headers).encode() + answer.content
            search.look(said, f"the answer to {method} {path}")
    for path in ("/metrics", "/healthz", "/readyz"):
        search.look(requests.get(f"http://127.0.0.1:9901{path}", timeout=20).content, f"admin {path}")


def main():
    given = json.load(sys.stdin)
    secret = bytes(a ^ b for a, b in zip(bytes.fromhex(given["masked"]), bytes.fromhex(given["mask"])))
    search = Search(secret)
    if sys.argv[1:2] == ["--process"]:
        for pid in pids():
            try:
                program = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
            except OSError:
                continue
            if program == sys.argv[2]:
                search.process(pid)
                search.tree(f"/proc/{pid}/root/")
    else:
        answers(search)
        search.file("/proc/self/environ")
        for pid in pids():
            search.process(pid)
        search.tree("/")
    print(json.dumps({
        "found": sorted(set(search.found)),
        "tokens": sorted(set(search.tokens)),
        "files": search.files,
        "processes": search.processes,
        "bytes": search.bytes,
    }))


main()
