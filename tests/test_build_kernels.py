"""What the build makes of the compilers it finds, and what it writes down when it cannot use them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "kernels"))
import build_kernels  # noqa: E402

with_cuda = pytest.mark.skipif(torch.version.cuda is None, reason=f"torch {torch.__version__} is built without CUDA")
with_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def test_without_a_compiler_the_install_goes_on_and_says_so(tmp_path, capfd):
    library = tmp_path / "ops" / "_C.so"
    library.parent.mkdir()
    library.write_bytes(b"of an earlier build")
    record = build_kernels.build(library, {"CXX": "no-such-compiler"})
    assert not library.exists()
    assert json.loads((library.parent / "_build_info.json").read_text()) == record
    assert record["built"] == {}
    assert "no C++ compiler was found (no-such-compiler); install g++ or set CXX" in record["not_built"]["cpu"]
    assert "CPU part" in record["not_built"]["cuda"]
    assert "without its CPU part: no C++ compiler was found" in capfd.readouterr().err


def test_a_compiler_that_does_not_work(tmp_path):
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho unknown option -std=c++20; exit 1\n")
    compiler.chmod(0o755)
    with pytest.raises(build_kernels.CannotBuild, match=r"g\+\+ cannot build C\+\+20: unknown option"):
        build_kernels.build(tmp_path / "_C.so", {"CXX": str(compiler), "ELSA_DET_CPU": "1"})


def test_left_out_by_hand(tmp_path):
    record = build_kernels.build(tmp_path / "_C.so", {"ELSA_DET_CPU": "0", "ELSA_DET_CUDA": "0"})
    assert record["not_built"] == {
        "cpu": "it was left out by ELSA_DET_CPU=0",
        "cuda": "the CPU part, which defines the operator, cannot be built",
    }
    with pytest.raises(build_kernels.CannotBuild, match="ELSA_DET_CPU='maybe' is not understood"):
        build_kernels.build(tmp_path / "_C.so", {"ELSA_DET_CPU": "maybe"})
    with pytest.raises(build_kernels.CannotBuild, match="the CUDA part of the operator is asked for, but"):
        build_kernels.build(tmp_path / "_C.so", {"ELSA_DET_CPU": "0", "ELSA_DET_CUDA": "1"})


def toolkit(tmp_path, script):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\n{script}\n")
    nvcc.chmod(0o755)
    return {"CUDA_HOME": str(tmp_path)}


@with_cuda
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo release 9.2, V9.2.88", r"nvcc is of CUDA 9.2, torch is built for CUDA \d+.*point CUDA_HOME to it"),
        ("echo hello", "does not tell its version"),
    ],
)
def test_toolkits_that_do_not_fit(tmp_path, script, reason):
    with pytest.raises(build_kernels.CannotBuild, match=reason):
        build_kernels._cuda_part(toolkit(tmp_path, script))


@with_cuda
@with_compiler
def test_a_toolkit_that_does_not_compile(tmp_path):
    (tmp_path / "include" / "crt").mkdir(parents=True)
    (tmp_path / "include" / "crt" / "host_config.h").touch()
    major = torch.version.cuda.split(".")[0]
    script = f'case "$*" in --version) echo "release {major}.0, V";; *) echo "ptxas is missing" >&2; exit 1;; esac'
    with pytest.raises(build_kernels.CannotBuild, match=r"nvcc .release \d+.0. does not work: ptxas is missing"):
        build_kernels._cuda_part(toolkit(tmp_path, script))


@with_cuda
def test_no_toolkit(tmp_path, monkeypatch):
    with pytest.raises(build_kernels.CannotBuild, match="there is no bin/nvcc in .*CUDA_HOME"):
        build_kernels._cuda_part({"CUDA_HOME": str(tmp_path)})
    monkeypatch.setattr(build_kernels.shutil, "which", lambda name: None)
    with pytest.raises(build_kernels.CannotBuild, match="nvcc is not on the PATH and CUDA_HOME is not set"):
        build_kernels._cuda_part({})


def test_a_torch_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(build_kernels.CannotBuild, match="is built without CUDA"):
        build_kernels._cuda_part({})


def test_architectures():
    flags = build_kernels._device_code("7.5; 9.0a+PTX 12.0")
    assert list(flags) == ["sm_75", "sm_90a", "compute_90a", "sm_120"]
    assert flags["compute_90a"] == ["-gencode", "arch=compute_90a,code=compute_90a"]
    with pytest.raises(build_kernels.CannotBuild, match="'Hopper' in TORCH_CUDA_ARCH_LIST"):
        build_kernels._device_code("8.0;Hopper")


@with_compiler
def test_only_what_has_changed_is_compiled_again(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(build_kernels, "ROOT", tmp_path)
    (tmp_path / "a.cpp").write_text('#include "a.h"\nint a() { return A; }\n')
    (tmp_path / "a.h").write_text("#define A 1\n")

    def compiled(*flags):
        build_kernels._object(tmp_path, "a.cpp", ["g++", *flags], "torch")
        return "compiled a.cpp" in capfd.readouterr().err

    assert compiled()
    assert not compiled()
    assert compiled("-O1")
    assert not compiled()
    (tmp_path / "a.h").write_text("#define A 2\n")
    assert compiled("-O1")
    (tmp_path / "a.cpp").touch()
    assert not compiled("-O1")
    (tmp_path / "a.cpp").write_text('#include "a.h"\nint a() { int unused; return A; }\n')
    assert compiled("-Wall")
    with pytest.raises(build_kernels.CannotBuild, match="unused variable"):
        build_kernels._object(tmp_path, "a.cpp", ["g++", "-Wall", "-O1"], "torch", strict=True)
    (tmp_path / "a.h").write_text("#define A wrong\n")
    with pytest.raises(build_kernels.CannotBuild, match=r"(?s)a.cpp does not compile with g\+\+:.*wrong"):
        compiled()
