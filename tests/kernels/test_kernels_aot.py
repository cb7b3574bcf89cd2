"""Every kernel compiles at the real model's shapes for every architecture, within the limits of each."""

import dataclasses
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import pytest
from bad_kernels import product_spec
from typer.testing import CliRunner

from isoframe.bench.commands import app
from isoframe.bench.operations import compiled_kernels as aot
from isoframe.bench.operations.compiled_kernels import CompiledPair, compile_pair, compile_pairs, mma_types
from isoframe.bench.operations.kernels_page import COMMAND, COMPILED_TITLE, render
from isoframe.bench.operations.launch_tuning import passes_gates, settings_users
from isoframe.kernels import KERNELS
from isoframe.kernels.launching.launch import ARCHS

ROOT = Path(__file__).resolve().parents[2]
PAIRS = [(name, arch) for name, spec in KERNELS.items() for arch in spec.archs]
Pairs = Mapping[tuple[str, int], CompiledPair]

GOOD = {"ROWS": 64, "COLS": 64, "DEPTH": 64, "num_warps": 4, "num_stages": 2}
BF16 = {"_product_kernel": ("bf16",)}


@pytest.fixture(scope="module")
def compiled() -> Pairs:
    pairs = compile_pairs(list(KERNELS), num_processes=2)
    return {(pair.spec, pair.arch): pair for pair in pairs}


def test_every_supported_pair_is_compiled(compiled: Pairs) -> None:
    assert list(compiled) == PAIRS
    assert len(compiled) == sum(len(spec.archs) for spec in KERNELS.values())
    assert all(pair.kernels for pair in compiled.values())


@pytest.mark.parametrize(("name", "arch"), PAIRS, ids=[f"{name}-sm_{arch}" for name, arch in PAIRS])
def test_kernel_stays_within_the_limits(compiled: Pairs, name: str, arch: int) -> None:
    assert compiled[name, arch].failures == ()


@pytest.mark.parametrize("name", KERNELS)
def test_only_fp8_kernels_leave_out_architectures(name: str) -> None:
    archs = KERNELS[name].archs
    assert set(archs) == set(ARCHS) - ({80, 86} if name.endswith("_fp8") else set())


@pytest.mark.parametrize("arch", ARCHS)
def test_good_tiles_pass(arch: int) -> None:
    pair = compile_pair(product_spec(BF16, **GOOD), arch)
    assert pair.failures == ()
    assert [kernel.mma for kernel in pair.kernels] == [("bf16",)]


BAD = {
    "shared": (product_spec(BF16, **GOOD | {"ROWS": 128, "COLS": 256, "num_stages": 4, "num_warps": 8}), 86),
    "spills": (product_spec(BF16, **GOOD | {"COLS": 128, "DEPTH": 32, "num_warps": 1}), 80),
    "instruction": (product_spec({"_product_kernel": ("bf16", "s8")}, **GOOD), 89),
    "name": (product_spec({"_produce_kernel": ("bf16",)}, **GOOD), 90),
    "compiler": (product_spec({}, is_fp8=True, **GOOD), 86),
}
REPORTS = {
    "shared": r"_product_kernel: shared memory \d{6} B > 101376 B",
    "spills": r"_product_kernel: \d+ spill instructions inside a loop",
    "instruction": r"_product_kernel: no s8 tensor-core instruction \(found: bf16\)",
    "name": r"_produce_kernel: not launched, though its tensor-core type is given",
    "compiler": r"does not compile: .*fp8e4nv",
}


@pytest.mark.parametrize("fault", BAD)
def test_fault_is_reported(fault: str) -> None:
    spec, arch = BAD[fault]
    report = "\n".join(compile_pair(spec, arch).failures)
    assert re.search(REPORTS[fault], report), report


def test_registers_of_all_threads_are_limited() -> None:
    (kernel,) = compile_pair(product_spec(BF16, **GOOD), 80).kernels
    many = dataclasses.replace(kernel, registers=255, num_warps=16)
    assert many.find_failures() == ["255 registers x 512 threads > 65536"]


def test_tuning_tries_only_settings_that_pass_the_gates() -> None:
    shipped, cases = settings_users(86)["int8_linear_two_ranges"]
    linear = [case for case in cases if case.spec.name == "int8_linear"]
    assert passes_gates("int8_linear_two_ranges", shipped, linear[:1], 86)
    too_large = {**shipped, "BLOCK_N": 256, "BLOCK_K": 256}
    assert not passes_gates("int8_linear_two_ranges", too_large, linear[:1], 86)


@pytest.mark.parametrize(
    ("instruction", "operand"),
    [
        ("mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32", "s8"),
        ("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16", "f16"),
        ("mma.sync.aligned.m16n8k32.row.col.f16.e4m3.e4m3.f16", "e4m3"),
        ("wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8", "s8"),
        ("wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3", "e4m3"),
    ],
)
def test_operand_type_is_read_from_the_instruction(instruction: str, operand: str) -> None:
    assert mma_types(f"\t{instruction} {{%r1}}, {{%r2}};") == (operand,)


def test_committed_description_is_what_the_generator_writes(compiled: Pairs) -> None:
    committed = (ROOT / "docs/kernels.md").read_text(encoding="utf-8")
    installed, pinned = version("triton"), pinned_triton()
    written = render(KERNELS, compiled.values(), installed)
    if installed != pinned:
        # Another compiler gives other registers.
        committed, written = (text.partition(COMPILED_TITLE)[0] for text in (committed, written))
    assert committed == written, f"run: {COMMAND}"


def pinned_triton() -> str:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith("triton=="))
    return line.removeprefix("triton==")


def test_description_has_a_cell_for_every_pair(compiled: Pairs) -> None:
    leaves_out = dataclasses.replace(KERNELS["gated_residual"], archs=(89, 90, 120))
    pairs = [
        pair for pair in compiled.values() if pair.spec == "gated_residual" and pair.arch in leaves_out.archs
    ]
    (row,) = (
        line
        for line in render({"gated_residual": leaves_out}, pairs, "3.7").splitlines()
        if line.startswith("| gated_residual")
    )
    assert row.count("not supported") == 2
    assert row.count(" r, 0 spills, ") == 3


def test_kernels_command_writes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aot, "compile_pairs", lambda names, num_processes: iter(()))
    result = CliRunner().invoke(app, ["kernels", "--docs", str(tmp_path / "kernels.md")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "kernels.md").read_text(encoding="utf-8") == render(KERNELS, (), version("triton"))


def test_command_exits_1_and_repeats_the_failures_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = dataclasses.replace(
        KERNELS["gated_residual"], mma={"_gated_residual_kernel": ("s8",)}, archs=(80, 90)
    )
    monkeypatch.setitem(KERNELS, "gated_residual", spec)
    result = CliRunner().invoke(app, ["aot", "--kernel", "gated_residual", "--processes", "1"])
    assert result.exit_code == 1
    assert result.stdout.count("not supported") == 3
    last = result.stdout.splitlines()[-3:]
    assert last[0] == "2 pairs of kernel and architecture compiled, 2 failures"
    assert last[2] == (
        "FAILED gated_residual on sm_90: _gated_residual_kernel: no s8 tensor-core instruction (found: none)"
    )


def test_command_passes_where_nothing_fails() -> None:
    result = CliRunner().invoke(
        app, ["aot", "--kernel", "gated_residual", "--arch", "120", "--processes", "1"]
    )
    assert result.exit_code == 0, result.output
    assert "1 pairs of kernel and architecture compiled, 0 failures" in result.stdout
