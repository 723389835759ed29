"""Builds the compiled twins. A machine without a C compiler still installs: the pure twins take over."""

import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import setup
from setuptools.extension import Extension

TWINS = ("_proto", "_heap", "_heartbeat", "_spawn")


def has_compiler():
    """A C compiler that finds Python's headers. Asked before the build, which could only fail half way."""
    from distutils.ccompiler import new_compiler
    from distutils.errors import CCompilerError, DistutilsError
    from distutils.sysconfig import customize_compiler

    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "probe.c")
        probe.write_text("#include <Python.h>\n")
        compiler = new_compiler()
        try:
            customize_compiler(compiler)
            compiler.compile([str(probe)], output_dir=folder, include_dirs=[sysconfig.get_path("include")])
        except (CCompilerError, DistutilsError, OSError) as error:
            print(f"titan-fast: no compiled modules, the pure-Python twins will do ({error})", file=sys.stderr)
            return False
    return True


def extensions():
    if not has_compiler():
        return []
    from Cython.Build import cythonize

    modules = [
        Extension(f"titan_fast.{name}", [f"titan_fast/{name}.pyx"], extra_compile_args=["-O2"]) for name in TWINS
    ]
    return cythonize(modules, language_level=3, build_dir="build", quiet=True)


# Only a build compiles anything; asking for the version must not.
building = any(command.startswith(("build", "bdist", "editable", "develop", "install")) for command in sys.argv[1:])
setup(ext_modules=extensions() if building else [])
