"""The one description of a field: what its values may be, and what every door says of it and calls it.

A door is a way into the engine: the "command" line, the "server" (HTTP, its client and its MCP tool), the "app" and
"comfyui", whose node samples and leaves images, prompts and files to others: it has the fields of the sampling alone.
They are made from these descriptions, so that a new field of a request is written down once.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, TypeVar

from ..errors import ConfigError
from ..files import expanded

DOORS = ("command", "server", "app", "comfyui")
# Headings under which the command line lists its options.
JOB, SAMPLING, OUTPUT, MACHINE = "Job", "Sampling", "Output", "Machine"
_KEY = "setting"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of a field, beside its name, type and default.

    Attributes:
        help: one line for people, with the unit; {name} is another field as the door calls it.
        hint: what the command line alone has to say after that.
        panel: heading under which the command line lists it; None is its general one.
        option: how the command line spells it where that is not "--" and its name: several spellings are separated by
            spaces, and capitals are an argument.
        names: what another door calls it where that is not the field's name; several fields of a door are separated too.
        metavar: what stands for the value of an option.
        choices: the values that there are; empty where they are not counted.
        untrained: further ones that no published checkpoint was trained for; most doors leave them out.
        least: smallest number; None checks nothing.
        is_positive: whether a number must be above 0.
        most: largest number.
        limit: largest number or longest text that a server takes; None is ``most``.
        absent: the doors that do not offer it, and why.
        needs: what a request must have for the field to do anything, see :mod:`.unused`; empty where it always does.
    """

    help: str
    hint: str = ""
    panel: str | None = SAMPLING
    option: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    untrained: tuple[str, ...] = ()
    least: int | None = None
    is_positive: bool = False
    most: int | None = None
    limit: int | None = None
    absent: Mapping[str, str] = field(default_factory=dict)
    needs: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """A field as one door offers it.

    Attributes:
        field: its name in the engine.
        name: what the door calls it.
        type: of its values, in the engine.
        default: in the engine; ``dataclasses.MISSING`` where a value must be given.
        help: for people, in the door's own names.
        setting: all that is known.
    """

    field: str
    name: str
    type: Any
    default: Any
    help: str
    setting: Setting


def setting(default: T, help: str, **about: Any) -> T:
    """A field that doors offer; ``about`` are the other arguments of :class:`Setting`."""
    made: T = field(default=default, metadata=described(help, **about))
    return made


def needed(help: str, **about: Any) -> Any:
    """A parameter of a command that must be given; a field of a dataclass says ``field(metadata=described(...))``."""
    return field(metadata=described(help, **about))


def described(help: str, **about: Any) -> dict[str, Setting]:
    """The metadata of a dataclass field that doors offer, see :class:`Setting`."""
    return {_KEY: Setting(help, **about)}


def setting_of(entry: "Field[Any]") -> Setting | None:
    """What is known of a dataclass field; None where it is for no door."""
    found: Setting | None = entry.metadata.get(_KEY)
    return found


def offered(configuration: type, door: str) -> dict[str, Offered]:
    """The fields of a dataclass that ``door`` offers, by their names in the engine; its own before those of its bases."""
    own = [vars(base).get("__annotations__", {}) for base in configuration.__mro__]
    ordered = sorted(
        fields(configuration), key=lambda entry: [entry.name in names for names in own].index(True)
    )
    known = {
        entry.name: offer(entry.name, entry.type, entry, door) for entry in ordered if _KEY in entry.metadata
    }
    shown = {name: one.name.split()[0] for name, one in known.items()}
    return {
        name: replace(one, help=one.help.format_map(shown))
        for name, one in known.items()
        if door not in one.setting.absent
    }


def offer(name: str, kind: Any, entry: "Field[Any]", door: str) -> Offered:
    """What ``door`` makes of one field."""
    about: Setting = entry.metadata[_KEY]
    shown, help = about.names.get(door, name), about.help
    if door == "command":
        shown = about.option or f"--{name.replace('_', '-')}"
        help = f"{help} {about.hint}".strip()
    return Offered(field=name, name=shown, type=kind, default=entry.default, help=help, setting=about)


def settle_values(configuration: Any, *paths: str) -> None:
    """Make numbers of other libraries Python's own, and ``~`` in the fields ``paths`` the home folder; first of all checks.

    A job's record and a video's metadata hold the values as JSON.
    """
    for entry in fields(configuration):
        value = getattr(configuration, entry.name)
        settled = expanded(value) if entry.name in paths else _own_number(value)
        if settled is not value:
            # The dataclass is frozen for everybody else.
            object.__setattr__(configuration, entry.name, settled)


def _own_number(value: object) -> object:
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if type(value) is tuple:
        settled = tuple(_own_number(item) for item in value)
        return value if all(one is other for one, other in zip(settled, value, strict=True)) else settled
    return value


def check_settings(configuration: Any) -> None:
    """Raise :class:`ConfigError` for the first field whose value is none of its choices or out of its bounds."""
    for entry in fields(configuration):
        about, value = entry.metadata.get(_KEY), getattr(configuration, entry.name)
        if about is None or (value is None and entry.default is None):
            continue
        if about.is_positive and (not is_finite(value) or value <= 0):
            raise ConfigError(f"{entry.name} must be a positive number, got {value!r}")
        if about.choices:
            check_choice(entry.name, value, (*about.choices, *about.untrained))
        elif about.least is not None and entry.type is float:
            check_number(entry.name, value, about.least, about.most)
        elif about.least is not None:
            check_at_least(entry.name, value, about.least)
            if about.most is not None and value > about.most:
                raise ConfigError(f"{entry.name} must be at most {about.most}, got {value}")


def check_choice(argument: str, value: str, choices: Iterable[str]) -> None:
    """Raise :class:`ConfigError` unless ``value`` is one of ``choices``; the message suggests the nearest."""
    choices = tuple(choices)
    if value in choices:
        return
    nearest = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ConfigError(f"{argument} must be one of {', '.join(choices)}, got {value!r}{hint}")


def check_at_least(argument: str, value: int, least: int) -> None:
    """Raise :class:`ConfigError` unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{argument} must be an integer of at least {least}, got {value!r}")


def check_number(argument: str, value: float, least: int, most: int | None = None) -> None:
    """Raise :class:`ConfigError` unless ``value`` is finite and from ``least`` to ``most``."""
    if not is_finite(value) or value < least or (most is not None and value > most):
        bounds = f"a finite number >= {least}" if most is None else f"from {least} to {most}"
        raise ConfigError(f"{argument} must be {bounds}, got {value!r}")


def is_finite(value: object) -> bool:
    """Whether ``value`` is a number, and neither infinite nor none at all."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
