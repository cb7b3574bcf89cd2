"""``isoframe bench traffic``: bytes that one denoising step of the 13B model reads and writes."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .traffic import Traffic


def traffic(
    precision: Annotated[str, typer.Option("--precision", help="Of our transformer.")] = "bf16",
    movers: Annotated[int, typer.Option("--movers", min=1, help="Operations listed for each program.")] = 8,
) -> None:
    """Count the memory traffic of one step at 640x608, ours beside diffusers'; exit 1 above the limit.

    Operands of matrix products and attention are not counted. Needs neither weights nor a GPU.
    """
    from ..engine.commands.failures import readable_errors
    from ..engine.config import check_choice
    from .traffic import (
        DIFFUSERS_BYTES,
        DIFFUSERS_TOLERANCE,
        LIMITS,
        measure_diffusers,
        measure_isoframe,
    )

    with readable_errors(debug=False):
        check_choice("--precision", precision, LIMITS)
        ours, theirs = measure_isoframe(precision), measure_diffusers()
    is_reached = ours.num_bytes <= LIMITS[precision]
    is_believable = abs(theirs.num_bytes / DIFFUSERS_BYTES - 1) <= DIFFUSERS_TOLERANCE
    _print_traffic(f"isoframe {precision}", ours, movers)
    _print_traffic("diffusers bf16", theirs, movers)
    typer.echo(
        f"isoframe {precision} {_gb(ours.num_bytes)} GB (limit {_gb(LIMITS[precision])}: "
        f"{'reached' if is_reached else 'MISSED'}), {theirs.num_bytes / ours.num_bytes:.1f} times less than diffusers"
    )
    typer.echo(
        f"diffusers {_gb(theirs.num_bytes)} GB (known {_gb(DIFFUSERS_BYTES)} +- {DIFFUSERS_TOLERANCE:.0%}: "
        f"{'found' if is_believable else 'NOT FOUND'})"
    )
    if not (is_reached and is_believable):
        raise typer.Exit(1)


def _print_traffic(title: str, traffic: "Traffic", num_movers: int) -> None:
    typer.echo(f"{title:32}{'calls':>8}{'GB':>9}")
    for mover in traffic.movers[:num_movers]:
        typer.echo(f"  {mover.name:30}{mover.num_calls:8d}{_gb(mover.num_bytes):>9}")
    rest = traffic.movers[num_movers:]
    if rest:
        typer.echo(
            f"  {'others':30}{sum(m.num_calls for m in rest):8d}{_gb(sum(m.num_bytes for m in rest)):>9}"
        )
    typer.echo(f"  {'sum':38}{_gb(traffic.num_bytes):>9}")
    typer.echo(f"  {'not counted: products, attention':38}{_gb(traffic.product_bytes):>9}\n")


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f}"
