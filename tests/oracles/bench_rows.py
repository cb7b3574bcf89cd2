"""A complete row, to be varied."""

from isoframe.bench.records.environment import Environment
from isoframe.bench.records.rows import BenchRow, Gate

ENVIRONMENT = Environment(
    cpu="a cpu", num_cores=2, num_threads=2, ram_bytes=2**34, gpu=None, gpu_bytes=None, driver=None,
    os="Linux 6", python="3.11.7", torch="2.13.0", triton="3.7.1", diffusers=None, isoframe=None, commit="abc",
)  # fmt: skip
ROW = BenchRow(
    case="forward-demo", variant="isoframe", shape=(144, 25), dtype="float32", unit="s", values=(3.0, 1.0, 2.0),
    gate=Gate(is_green=True, text="relative error 1e-7 <= 1e-5"), environment=ENVIRONMENT,
    command="isoframe bench forward", date="2026-01-01T00:00:00+00:00",
)  # fmt: skip
