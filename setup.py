"""Calls CMake, the only build description; lists no sources."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    def run(self) -> None:
        package = ROOT if self.editable_mode else Path(self.build_lib).resolve()
        build = ROOT / "build" / "cmake"
        options = [f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_BUILD_TYPE=Release"]
        options += ["-GNinja"] if shutil.which("ninja") else []
        options += os.environ.get("FIXCLF_CMAKE_ARGS", "").split()
        subprocess.run(["cmake", "-S", ROOT, "-B", build, *options], check=True)
        subprocess.run(["cmake", "--build", build, "-j2"], check=True)
        subprocess.run(
            ["cmake", "--install", build, "--prefix", package / "fixclf_infer"], check=True
        )

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
