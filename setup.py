"""Calls CMake, the only build description; lists no sources."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def check_tools() -> None:
    """Ends with one sentence where a tool is missing: pip shows the last lines that are printed."""
    compilers = (
        [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    )
    for what, names, how in (
        ("CMake", ["cmake"], "pip install cmake"),
        ("a build tool, ninja or make,", ["ninja", "make"], "pip install ninja"),
        ("a C++ compiler", compilers, "apt install g++, or set CXX"),
    ):
        if not any(shutil.which(name) for name in names):
            raise SystemExit(
                f"fixclf_infer can't be built: {what} is missing (looked for {', '.join(names)}); "
                f"{how}"
            )


class CMakeBuild(build_ext):
    def run(self) -> None:
        check_tools()
        package = ROOT if self.editable_mode else Path(self.build_lib).resolve()
        # Of their own: what a wheel was configured with must not stay for the editable install.
        build = ROOT / "build" / ("cmake" if self.editable_mode else "cmake-wheel")
        # What an earlier build found with another Python is forgotten; its kernels are kept.
        options = ["-UPython_*", "-U_Python_*", "-Upybind11_*"]
        options += [f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_BUILD_TYPE=Release"]
        options += ["-GNinja"] if shutil.which("ninja") else []
        options += os.environ.get("FIXCLF_CMAKE_ARGS", "").split()
        for arguments in (
            ["-S", ROOT, "-B", build, *options],
            ["--build", build, "-j2"],
            ["--install", build, "--prefix", package / "fixclf_infer"],
        ):
            if subprocess.run(["cmake", *arguments]).returncode != 0:
                raise SystemExit("fixclf_infer can't be built: cmake failed, as it says above")

    def get_outputs(self) -> list[str]:
        return []


# triton_kernels/ lies beside the package that it is installed into.
TRITON_KERNELS = "fixclf_infer.triton_kernels"
setup(
    packages=[*find_packages(include=["fixclf_infer", "fixclf_infer.*"]), TRITON_KERNELS],
    package_dir={TRITON_KERNELS: "triton_kernels"},
    ext_modules=[Extension("fixclf_infer._native", [])],
    cmdclass={"build_ext": CMakeBuild},
)
