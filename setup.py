"""The package. Tool settings are in pyproject.toml; the compiled operator is built here when it can be."""

import sys
from ctypes.util import find_library
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "kernels"))

import build_kernels as kernels  # noqa: E402

LIBRARY = Path("elsa_det", "ops", "_C.so")
MODULES = (
    "train",
    "demo",
    "web_demo",
    "check_data",
    "visualize_data",
    "convert_checkpoint",
    "analyze_model",
    "benchmark",
)
COMMANDS = [
    *(f"elsa-det-{name.replace('_', '-')} = elsa_det.commands.{name}:main" for name in MODULES),
    "elsa-det-doctor = elsa_det.doctor:main",
]


class BuildKernels(build_ext):
    """Builds a plain shared library, loaded by torch rather than imported: it serves every Python."""

    def run(self):
        in_place = self.inplace or getattr(self, "editable_mode", False)
        try:
            kernels.build((ROOT if in_place else Path(self.build_lib).absolute()) / LIBRARY)
        except kernels.CannotBuild as error:
            raise SystemExit(f"elsa_det: {error}") from None

    def get_outputs(self):
        files = (LIBRARY, LIBRARY.with_name(kernels.RECORD))
        return [str(path) for file in files if (path := Path(self.build_lib) / file).exists()]

    def get_output_mapping(self):
        return {}


class Wheel(bdist_wheel):
    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


def version() -> str:
    line = next(
        line for line in (ROOT / "elsa_det" / "__init__.py").read_text().splitlines() if line.startswith("__version__")
    )
    return line.split('"')[1]


def opencv() -> str:
    """The OpenCV that is there, else the one with windows where the display libraries are, else the headless one."""
    flavours = ["opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"]
    for flavour in flavours:
        try:
            distribution(flavour)
        except PackageNotFoundError:
            continue
        return flavour
    return "opencv-python" if find_library("GL") and find_library("X11") else "opencv-python-headless"


# The configs are installed as the package elsa_det.configs; in the source tree they stay at the top.
config_packages = ["elsa_det.configs"] + [
    "elsa_det.configs." + ".".join(folder.relative_to(ROOT / "configs").parts)
    for folder in sorted((ROOT / "configs").rglob("*"))
    if folder.is_dir() and folder.name != "__pycache__"
]

setup(
    name="elsa_det",
    ext_modules=[Extension("elsa_det.ops._C", sources=[])],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
    version=version(),
    description="ELSA-Swin backbones for dense prediction on Detectron2",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["elsa_det", "elsa_det.*"]), *config_packages],
    package_dir={"elsa_det": "elsa_det", "elsa_det.configs": "configs"},
    install_requires=[
        "torch>=2.8",
        "torchvision>=0.23",
        "numpy",
        "fvcore",
        "iopath",
        "omegaconf>=2.3",
        "hydra-core>=1.3",
        "pycocotools>=2.0.8",
        f"{opencv()}>=4.8",
        "cityscapesscripts",
        "timm>=1.0",
        "tensorboard",
        "rich",
        "safetensors",
        "scipy",
        "matplotlib",
        "Pillow>=10",
        "cloudpickle",
        "tabulate",
        "termcolor",
        "shapely",
        "PyYAML",
    ],
    entry_points={"console_scripts": COMMANDS},
    extras_require={
        "dev": ["pytest>=8", "pytest-xdist>=3.6", "hypothesis", "ruff==0.17.5", "mypy==2.4.1", "yacs"],
        "docs": ["mkdocs-material>=9.6"],
        "wandb": ["wandb"],
        "web": ["gradio>=6"],
        "web-test": ["gradio>=6", "selenium>=4"],
    },
)
