"""Builds the compiled twins. A machine without a C compiler still installs: the pure twins take over."""

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.extension import Extension

TWINS = ("_proto", "_heap", "_heartbeat", "_spawn")


class BuildTwins(build_ext):
    """Builds what it can: a missing compiler costs speed, never the installation."""

    def build_extension(self, ext):
        try:
            super().build_extension(ext)
        except Exception as error:
            self.warn(f"{ext.name} is not compiled ({error}); its pure-Python twin will be used")


def extensions():
    try:
        from Cython.Build import cythonize
    except ImportError:
        return []
    modules = [
        Extension(f"titan_fast.{name}", [f"titan_fast/{name}.pyx"], extra_compile_args=["-O2"], optional=True)
        for name in TWINS
    ]
    return cythonize(modules, language_level=3, build_dir="build")


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildTwins})
