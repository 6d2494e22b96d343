"""Copies Python with `requests` into a folder that becomes `/usr` of an image.

Usage: agent.py FOLDER, run by the interpreter of the test clients' environment. The interpreter behind that environment
may come from a distribution or from pyenv; all paths are asked of it. It finds its library from where it is itself, so
that nothing has to be told of the move.
"""

import compileall
import importlib.metadata
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig

# Parts of the library that no agent uses: tests, windows, other packages, and what C programs are linked with.
SKIPPED_FOLDERS = {
    "__pycache__", "dist-packages", "ensurepip", "idlelib", "lib2to3", "site-packages", "test", "tests", "tkinter",
    "turtledemo",
}
SKIPPED_FILES = re.compile(r"_(ctypes_)?test|_?xx|_tkinter|.*\.a$")
PACKAGE = "requests"


def main(folder):
    interpreter = os.path.realpath(sys.executable)
    place = os.path.join(folder, "bin/python3")
    copy(interpreter, place)
    os.symlink("python3", os.path.join(folder, "bin/python"))
    # In the environment itself there are only packages.
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    for name in ("stdlib", "platstdlib"):
        library = sysconfig.get_path(name, vars=base)
        copy_library(library, os.path.join(folder, within(sys.base_prefix, library)))
    packages = os.path.join(folder, site_packages(interpreter))
    for distribution in with_requirements(PACKAGE):
        for file in distribution.files:
            # Programs would be in ../../../bin, and start with a path of the environment.
            if ".." not in file.parts and "__pycache__" not in file.parts:
                copy(file.locate(), os.path.join(packages, file))
    # Valid whatever time the files have in the image; the agent cannot write its own, for its file system is read-only.
    compiled = compileall.compile_dir(
        folder, quiet=1, stripdir=folder, prependdir="/usr",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    if not compiled:
        sys.exit("not all of Python's library can be compiled")


def within(prefix, path):
    """The path from the prefix on."""
    relative = os.path.relpath(path, prefix)
    if relative.startswith(os.pardir):
        sys.exit(f"{path} is not below {prefix}")
    return relative


def site_packages(interpreter):
    """Where the interpreter itself, outside of the environment, looks for packages first."""
    ask = "import site, sys; print(site.getsitepackages()[0]); print(sys.prefix)"
    answer = subprocess.run([interpreter, "-I", "-c", ask], check=True, capture_output=True, text=True).stdout
    path, prefix = answer.splitlines()
    return within(prefix, path)


def with_requirements(name):
    """A package and all that it needs, without its extras."""
    found, wanted = {}, [name]
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = importlib.metadata.distribution(name)
            for requirement in found[name].requires or []:
                if "extra ==" not in requirement:
                    wanted.append(re.match(r"[\w.-]+", requirement).group())
    return found.values()


def copy_library(source, target):
    for folder, folders, files in os.walk(source):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith("config-")]
        for name in files:
            if not SKIPPED_FILES.match(name):
                path = os.path.join(folder, name)
                copy(path, os.path.join(target, os.path.relpath(path, source)))


def copy(source, target):
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copyfile(source, target)
    shutil.copymode(source, target)


main(sys.argv[1])
