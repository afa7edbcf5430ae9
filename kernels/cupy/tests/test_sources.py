"""The CUDA sources compile to PTX, by NVRTC from the wheel of the extra `test` or by nvcc, without a GPU."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from importlib import metadata

import pytest

from hybridcore.dynamics.categorical import UNIFORM
from hybridcore_cupy import device
from hybridcore_cupy.lowrank import MOST_SIDE
from hybridcore_cupy.rollout import NAMES
from hybridcore_cupy.structs import LAYERS, MOST_ARRAYS, MOST_RUNS

SOURCES = [
    ("stream", 0),
    ("encode", 0),
    ("small", 0),
    ("rollout", 0),
    *(("snapshots", k) for k in (1, 5, MOST_ARRAYS)),
]
ARCHITECTURE = "compute_80"


def nvrtc():
    """The compiler's library of any installed distribution that brings it, or None."""
    for distribution in metadata.distributions():
        if "nvrtc" in (distribution.metadata["Name"] or ""):
            for file in distribution.files or ():
                if re.fullmatch(r"libnvrtc\.so\.\d+", file.name):
                    return ctypes.CDLL(str(distribution.locate_file(file)))
    return None


def compile_by_nvrtc(library, code, options):
    program = ctypes.c_void_p()
    assert library.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"k.cu", 0, None, None) == 0
    given = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
    status = library.nvrtcCompileProgram(program, len(options), given)
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    library.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    library.nvrtcGetPTX(program, ptx)
    return ptx.value.decode()


def compile_by_nvcc(code, options, folder):
    file, out = folder / "k.cu", folder / "k.ptx"
    file.write_text(code)
    subprocess.run(["nvcc", "-ptx", *options, str(file), "-o", str(out)], check=True)
    return out.read_text()


@pytest.mark.parametrize("file, count", SOURCES)
def test_f70_sources_compile(file, count, tmp_path):
    code = device.source(file)
    options = ["-std=c++17", f"-arch={ARCHITECTURE}", *([f"-DK={count}"] if count else [])]
    library = nvrtc()
    if library is not None:
        ptx = compile_by_nvrtc(library, code, options)
    elif shutil.which("nvcc"):
        ptx = compile_by_nvcc(code, options, tmp_path)
    else:
        pytest.skip("neither NVRTC (pip install 'hybridcore-cupy[test]') nor nvcc: sources are not compiled")
    kernels = re.findall(r'extern "C" __global__ void (\w+)\(', code)
    assert kernels and set(re.findall(r"\.entry (\w+)", ptx)) == set(kernels)


def test_the_sources_share_their_constants_with_python():
    text = device.source("stream")
    assert f"#define MOST_ARRAYS {MOST_ARRAYS}" in text
    assert f"#define MOST_RUNS {MOST_RUNS}" in text
    assert f"#define MOST_SIDE {MOST_SIDE}" in device.source("small")
    text = device.source("rollout")
    assert f"#define UNIFORM {UNIFORM}f" in text
    layers = re.search(r"enum { (.*), LAYERS };", text)
    assert layers is not None and tuple(layers[1].lower().split(", ")) == NAMES and len(NAMES) == LAYERS
