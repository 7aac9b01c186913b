"""Builds the compiled operator: one shared library, and beside it a record of what is in it and what is not, and why.

Run by ``setup.py`` as part of the install; ``python kernels/build_kernels.py`` does the same by hand. Needs no more
than a C++20 compiler and, for the CUDA part, a CUDA toolkit of torch's major version; a GPU is not looked for.

Environment: ``ELSA_DET_CUDA`` 1 makes a CUDA part that cannot be built an error, 0 leaves it out; ``ELSA_DET_CPU`` 1
makes it an error if no library can be built, 0 builds none; ``ELSA_DET_STRICT`` 1 takes warnings for errors;
``ELSA_DET_BUILD_DIR`` is where object files are kept; ``CXX``, ``CXXFLAGS``, ``CUDA_HOME``, ``TORCH_CUDA_ARCH_LIST``
and ``MAX_JOBS`` as usual.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORD = "_build_info.json"
#: Turing, Ampere and Hopper as machine code; every later GPU through PTX
CUDA_ARCHITECTURES = "7.5;8.0;9.0+PTX"


class CannotBuild(Exception):
    """Why a part cannot be built; the message goes into the record."""


@dataclass
class Part:
    """What one part (CPU or CUDA) brings to the library."""

    commands: dict[str, list[str]] = field(default_factory=dict)  # source -> command without source and object
    libraries: list[str] = field(default_factory=list)
    record: dict[str, object] = field(default_factory=dict)


def build(library: Path, environment: Mapping[str, str] = os.environ) -> dict:
    """Build ``library`` and write the record beside it; an outdated library that cannot be rebuilt is removed.

    Returns:
        The record: ``torch`` and ``cuda`` versions built against, ``built`` and ``not_built`` by part.

    Raises:
        CannotBuild: a part that the environment demands cannot be built, or a usable compiler fails.
    """
    record: dict = {"torch": None, "cuda": None, "built": {}, "not_built": {}}
    parts: dict[str, Part] = {}
    for name, configure in (("cpu", _cpu_part), ("cuda", _cuda_part)):
        try:
            if name == "cuda" and "cpu" not in parts:
                raise CannotBuild("the CPU part, which defines the operator, cannot be built")
            wanted = environment.get(f"ELSA_DET_{name.upper()}", "")
            if wanted not in ("", "0", "1"):
                raise CannotBuild(f"ELSA_DET_{name.upper()}={wanted!r} is not understood: use 1, 0, or leave it unset")
            if wanted == "0":
                raise CannotBuild(f"it was left out by ELSA_DET_{name.upper()}=0")
            parts[name] = configure(environment)
        except CannotBuild as reason:
            _skip(name, str(reason), record, environment)
    if parts:
        import torch

        record["torch"], record["cuda"] = torch.__version__, torch.version.cuda
        objects = _compile(parts, record, environment)
        _link(library, objects, parts, _compiler(environment.get("CXX", "")))
        record["built"] = {name: part.record for name, part in parts.items()}
        _say(f"built {', '.join(parts)} into {library}")
    else:
        library.unlink(missing_ok=True)
    library.parent.mkdir(parents=True, exist_ok=True)
    library.with_name(RECORD).write_text(json.dumps(record, indent=1) + "\n")
    return record


def _skip(name: str, reason: str, record: dict, environment: Mapping[str, str]) -> None:
    if environment.get(f"ELSA_DET_{name.upper()}", "") not in ("", "0"):
        raise CannotBuild(f"the {name.upper()} part of the operator is asked for, but {reason}")
    record["not_built"][name] = reason
    _say(f"the operator is built without its {name.upper()} part: {reason}")


def _say(text: str) -> None:
    print(f"elsa_det: {text}", file=sys.stderr, flush=True)


# --- what can be built ------------------------------------------------------------------------------------------------


def _cpu_part(environment: Mapping[str, str]) -> Part:
    torch_root = _torch_root()
    if platform.system() not in ("Linux", "Darwin"):
        raise CannotBuild(f"it is built on Linux and macOS only, not on {platform.system()}")
    compiler = _compiler(environment.get("CXX", ""))
    openmp_compile, openmp_link = _openmp(compiler, torch_root)
    flags = [*_cxx_flags(compiler, torch_root, environment), *openmp_compile]
    sources = ["kernels/elsa.cpp", *_sources("kernels/cpu", "*.cpp")]
    names = ("torch", "torch_cpu", "c10")
    return Part(
        commands=dict.fromkeys(sources, flags),
        libraries=[*_torch_libraries(torch_root, names), *openmp_link],
        record={"compiler": _first_line([*compiler, "--version"]), "openmp": bool(openmp_compile)},
    )


def _cuda_part(environment: Mapping[str, str]) -> Part:
    torch_root = _torch_root()
    import torch

    if torch.version.cuda is None or not list((torch_root / "lib").glob("libtorch_cuda.*")):
        raise CannotBuild(f"this torch ({torch.__version__}) is built without CUDA")
    major = torch.version.cuda.split(".")[0]
    nvcc = _nvcc(environment)
    version = re.search(r"release (\d+)\.(\d+)", _output([nvcc, "--version"]))
    if version is None:
        raise CannotBuild(f"{nvcc} --version does not tell its version")
    if version[1] != major:
        raise CannotBuild(
            f"{nvcc} is of CUDA {version[1]}.{version[2]}, torch is built for CUDA {torch.version.cuda}: install a "
            f"toolkit of CUDA {major} and point CUDA_HOME to it"
        )
    toolkit, beside_torch = _toolkit(nvcc, environment), _cuda_beside_torch(major)
    include = _first_file([*toolkit, *beside_torch], ["include", "targets/*/include"], "crt/host_config.h", "headers")
    # The runtime that came with torch is the one that will be loaded; a toolkit may have none.
    runtime = _first_file(
        [*beside_torch, *toolkit], ["lib", "lib64", "targets/*/lib", "."], f"libcudart*.so.{major}*", "runtime library"
    )
    compiler = _compiler(environment.get("CXX", ""))
    device_code = _device_code(environment.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES)
    nvcc_flags = [
        *(nvcc, "-ccbin", compiler[0], "-O3", "-std=c++17", "-Xcompiler", "-fPIC,-fvisibility=hidden"),
        *(word for flags in device_code.values() for word in flags),
    ]
    _probe_nvcc(nvcc_flags, version[0])
    host_flags = [*_cxx_flags(compiler, torch_root, environment), "-isystem", str(include.parents[1])]
    return Part(
        commands=dict.fromkeys(_sources("kernels/cuda", "*.cu"), nvcc_flags)
        | dict.fromkeys(_sources("kernels/cuda", "*.cpp"), host_flags),
        libraries=[*_torch_libraries(torch_root, ("torch_cuda", "c10_cuda")), str(runtime)],
        record={"toolkit": f"{version[1]}.{version[2]}", "architectures": list(device_code)},
    )


def _torch_root() -> Path:
    try:
        import torch
    except ImportError as error:
        raise CannotBuild(
            f"torch cannot be imported while building ({error}); pip hides it unless told --no-build-isolation"
        ) from error
    return Path(torch.__file__).parent


def _sources(folder: str, pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / folder).glob(pattern))


def _torch_libraries(torch_root: Path, names: tuple[str, ...]) -> list[str]:
    return ["-L" + str(torch_root / "lib"), *("-l" + name for name in names)]


@functools.cache
def _compiler(named: str) -> list[str]:
    """The command of a compiler that understands C++20: ``named``, or the system's."""
    candidates = [shlex.split(named)] if named else [["g++"], ["c++"], ["clang++"]]
    found = [command for command in candidates if shutil.which(command[0])]
    if not found:
        raise CannotBuild(f"no C++ compiler was found ({', '.join(c[0] for c in candidates)}); install g++ or set CXX")
    error = _probe(found[0], "#include <optional>\nint main() { return std::optional<int>(0).value(); }")
    if error:
        raise CannotBuild(f"{found[0][0]} cannot build C++20: {error}")
    return found[0]


def _probe(compiler: list[str], source: str, compile_flags: Sequence[str] = (), link: Sequence[str] = ()) -> str:
    """Empty if this source compiles and links, else the error."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "probe.cpp").write_text(source)
        command = [*compiler, "-std=c++20", *compile_flags, "probe.cpp", "-o", "probe", *link]
        return _run(command, folder)


def _openmp(compiler: list[str], torch_root: Path) -> tuple[list[str], list[str]]:
    """Flags for the compiler and the linker: without them ``at::parallel_for`` runs on one thread."""
    # torch's own copy where it has one: two OpenMP runtimes in a process would each start their threads.
    bundled = [str(path) for path in sorted((torch_root / "lib").glob("libgomp*.so*"))][:1]
    source = "#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }"
    for link in (bundled, ["-fopenmp"]):
        if link and not _probe(compiler, source, ["-fopenmp"], link):
            return ["-fopenmp"], link
    _say(f"{compiler[0]} has no OpenMP: the operator will run on one thread")
    return [], []


def _cxx_flags(compiler: list[str], torch_root: Path, environment: Mapping[str, str]) -> list[str]:
    import torch

    include = torch_root / "include"
    return [
        *(*compiler, "-O3", "-fPIC", "-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra"),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *("-isystem", str(include), "-isystem", str(include / "torch/csrc/api/include")),
        *shlex.split(environment.get("CXXFLAGS", "")),
    ]


def _nvcc(environment: Mapping[str, str]) -> str:
    homes = [environment[name] for name in ("CUDA_HOME", "CUDA_PATH") if environment.get(name)]
    for home in homes:
        if shutil.which(f"{home}/bin/nvcc"):
            return f"{home}/bin/nvcc"
    if homes:
        raise CannotBuild(f"there is no bin/nvcc in {homes[0]} (CUDA_HOME)")
    found = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if found is None:
        raise CannotBuild("no CUDA toolkit was found: nvcc is not on the PATH and CUDA_HOME is not set")
    return found


def _toolkit(nvcc: str, environment: Mapping[str, str]) -> list[Path]:
    """Where the toolkit of this nvcc is, which may be a mere wrapper around the real one."""
    with tempfile.NamedTemporaryFile(suffix=".cu") as source:
        top = re.search(r"^#\$ TOP=(.+)$", _output([nvcc, "--dryrun", "-c", source.name]), re.MULTILINE)
    homes = [environment[name] for name in ("CUDA_HOME", "CUDA_PATH") if environment.get(name)]
    return [*([Path(top[1].strip())] if top else []), *map(Path, homes), Path(nvcc).resolve().parents[1]]


def _cuda_beside_torch(major: str) -> list[Path]:
    names = (f"cu{major}", "cuda_runtime")
    wheels = [Path(entry, "nvidia", name) for entry in sys.path for name in names]
    return [*wheels, _torch_root() / "lib", Path(sys.prefix)]


def _first_file(homes: list[Path], folders: list[str], pattern: str, what: str) -> Path:
    """The folder-relative ``pattern`` in the first of these places that has it."""
    for home in homes:
        for folder in folders:
            for path in sorted(home.glob(f"{folder}/{pattern}")):
                return path
    raise CannotBuild(f"CUDA's {what} ({pattern}) was found neither in its toolkit nor beside torch")


def _device_code(architectures: str) -> dict[str, list[str]]:
    """``"8.0;9.0+PTX"`` as nvcc's flags, by name; names are those of the record: ``sm_80``, ``compute_90``."""
    flags: dict[str, list[str]] = {}
    for entry in re.split(r"[;, ]+", architectures.strip()):
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", entry)
        if match is None:
            raise CannotBuild(
                f"{entry!r} in TORCH_CUDA_ARCH_LIST is not understood: write numbers, as in '8.0;9.0+PTX'"
            )
        number = match[1] + match[2] + match[3]
        flags[f"sm_{number}"] = ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if match[4]:
            flags[f"compute_{number}"] = ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


def _probe_nvcc(command: list[str], release: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "probe.cu").write_text("#include <cuda_bf16.h>\n__global__ void probe(float* x) { *x = 1; }\n")
        error = _run([*command, "-c", "probe.cu", "-o", "probe.o"], folder)
    if error:
        raise CannotBuild(f"nvcc ({release}) does not work: {error}")


# --- compiling and linking --------------------------------------------------------------------------------------------


def _compile(parts: dict[str, Part], record: dict, environment: Mapping[str, str]) -> list[Path]:
    """All objects, those of unchanged sources reused. A CUDA part that fails is dropped from ``parts``."""
    cache = Path(environment.get("ELSA_DET_BUILD_DIR") or ROOT / "build" / "kernels")
    cache.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = int(environment.get("MAX_JOBS") or cores)
    salt, strict = f"{record['torch']} {record['cuda']}", environment.get("ELSA_DET_STRICT") == "1"
    with concurrent.futures.ThreadPoolExecutor(max(jobs, 1)) as pool:
        running = {
            name: [
                pool.submit(_object, cache, source, command, salt, strict) for source, command in part.commands.items()
            ]
            for name, part in sorted(parts.items(), reverse=True)  # CUDA first: its units take longest
        }
        objects = []
        for name, futures in running.items():
            try:
                objects += [future.result() for future in futures]
            except CannotBuild as reason:
                for other in running.values():
                    for future in other:
                        future.cancel()
                if name == "cpu":
                    raise CannotBuild(f"{reason}\n(ELSA_DET_CPU=0 installs without the compiled operator)") from reason
                del parts[name]
                _skip(name, str(reason), record, environment)
                return _compile(parts, record, environment)
    return objects


def _object(cache: Path, source: str, command: list[str], salt: str, strict: bool = False) -> Path:
    digest = hashlib.sha256("\0".join([salt, source, *command]).encode()).hexdigest()[:16]
    result = cache / f"{Path(source).name}-{digest}.o"
    dependencies, contents = result.with_suffix(".d"), result.with_suffix(".sha")
    if result.is_file() and contents.is_file() and contents.read_text() == _contents(dependencies):
        return result
    start, partial = time.monotonic(), result.with_suffix(f".{os.getpid()}.o")
    error = _run([*command, "-MMD", "-MF", str(dependencies), "-c", source, "-o", str(partial)], ROOT, strict)
    if error:
        raise CannotBuild(f"{source} does not compile with {command[0]}:\n{error}")
    os.replace(partial, result)
    contents.write_text(_contents(dependencies))
    _say(f"compiled {source} in {time.monotonic() - start:.0f} s")
    return result


def _contents(dependencies: Path) -> str:
    """A digest of the files that a compiler says it has read; torch's own are not among them, its version counts."""
    words = dependencies.read_text().replace("\\\n", " ").partition(":")[2].split() if dependencies.is_file() else []
    digest = hashlib.sha256()
    for file in (ROOT / word for word in words):
        digest.update(file.read_bytes() if file.is_file() else b"gone")
    return digest.hexdigest()


def _link(library: Path, objects: list[Path], parts: dict[str, Part], compiler: list[str]) -> None:
    if platform.system() == "Darwin":
        shape = ["-dynamiclib", "-undefined", "dynamic_lookup"]
    else:
        shape = ["-shared", "-Wl,--no-undefined", "-s"]
    libraries = [word for part in parts.values() for word in part.libraries]
    library.parent.mkdir(parents=True, exist_ok=True)
    partial = library.with_suffix(f".{os.getpid()}.so")
    command = [*compiler, *shape, *map(str, objects), "-o", str(partial), *libraries]
    error = _run(command, ROOT)
    if error:
        raise CannotBuild(f"the library does not link:\n{error}")
    os.replace(partial, library)  # never write into a library that a running process has mapped


def _run(command: list[str], folder: str | Path, strict: bool = False) -> str:
    """Run a command; its errors, or else nothing: warnings are passed on, or are errors if ``strict``."""
    done = subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = done.stdout.strip()
    if done.returncode or (strict and output):
        return "\n".join(output.splitlines()[-30:]) or f"exit code {done.returncode}"
    if output:
        print(output, file=sys.stderr, flush=True)
    return ""


def _output(command: list[str]) -> str:
    return subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout


def _first_line(command: list[str]) -> str:
    return next(iter(_output(command).splitlines()), "unknown")


if __name__ == "__main__":
    try:
        build(ROOT / "elsa_det" / "ops" / "_C.so")
    except CannotBuild as error:
        sys.exit(f"elsa_det: {error}")
