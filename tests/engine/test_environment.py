"""What of a machine is part of the keys of measured figures."""

import os
import platform
import sys

import pytest

from compressbench.engine import environment
from compressbench.engine.environment import KERNELS, machine

XEON = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Processor
stepping\t: 8
flags\t\t: fpu sse4_2 smep avx2 avx512f avx512_vnni amx_int8

processor\t: 1
model name\t: another core
flags\t\t: fpu
"""
ARM = """processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd asimddp sve i8mm
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


@pytest.fixture
def described(monkeypatch):
    """Call with the text of /proc/cpuinfo for the machine that it describes."""
    for name in KERNELS:
        monkeypatch.delenv(name, raising=False)

    def describe(text):
        monkeypatch.setattr(environment, "_cpuinfo", lambda: text)
        return machine()

    return describe


def test_a_cpu_is_its_model_and_its_instructions(described):
    found = described(XEON)
    assert found["cpu"] == "Intel(R) Xeon(R) Processor"
    assert found["model"] == {"vendor_id": "GenuineIntel", "cpu family": "6", "model": "143",
                              "stepping": "8"}  # fmt: skip
    assert found["instructions"] == ["amx_int8", "avx2", "avx512_vnni", "avx512f", "sse4_2"]
    assert found["cores"] == os.cpu_count()
    assert described(XEON.replace(" avx512_vnni", "")) != found, "of one name, yet another"


def test_a_cpu_without_a_name_is_known_by_its_numbers(described):
    found = described(ARM)
    assert found["model"] == {"CPU implementer": "0x41", "CPU part": "0xd40"}
    assert found["instructions"] == ["asimd", "asimddp", "i8mm", "sve"]


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS says more")
def test_without_cpuinfo_the_system_is_asked(described):
    assert described("")["cpu"] == platform.processor()


@pytest.mark.parametrize("name", KERNELS)
def test_the_kernels_that_the_environment_chooses_count(described, monkeypatch, name):
    before = described(XEON)
    monkeypatch.setenv(name, "AVX2")
    assert described(XEON)["kernels"] == {name: "avx2"}
    assert described(XEON) != before
