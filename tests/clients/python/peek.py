"""Tries to get at the memory of another process of the same user: peek.py PID.

Prints one JSON object: by attempt, "done" or the name of the error that refused it.
"""

import ctypes
import errno
import json
import os
import sys

PTRACE_SEIZE = 0x4206


def environ(pid):
    with open(f"/proc/{pid}/environ", "rb") as file:
        file.read()


def mem(pid):
    # Opening it asks for the right to attach, as a debugger does.
    with open(f"/proc/{pid}/mem", "rb"):
        pass


def fd(pid):
    os.listdir(f"/proc/{pid}/fd")


def ptrace(pid):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    if libc.ptrace(PTRACE_SEIZE, pid, None, None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def attempt(attack, pid):
    try:
        attack(pid)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    return "done"


def main():
    pid = int(sys.argv[1])
    attacks = [environ, mem, fd, ptrace]
    print(json.dumps({attack.__name__: attempt(attack, pid) for attack in attacks}))


if __name__ == "__main__":
    main()
