"""What every command is: a function whose options are made of what it asks for, inside one wrapper for errors."""

import dataclasses
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, cast

from ....errors import ConfigError
from ....files import expanded
from ....request.config import EngineConfig, LoraStrength
from ....request.fields import Offered, offer, offered
from ....request.guides import GuideImage
from ....request.sizes import Size
from . import options
from .failures import readable_errors

Parameter = inspect.Parameter
# Fields of a request as the options give them.
Asked = dict[str, Any]
# How the command line writes values that are not plain: the type there, and what its text means.
# Parameters that name a model, whose revision is an option of its own; the first that a command has.
_MODELS = ("model", "source", "file")
_FORMS: dict[Any, tuple[Any, Callable[[str, Any], Any] | None]] = {
    tuple[int, int] | None: (str | None, lambda _, text: options.parse_size(text)),
    tuple[int, ...] | None: (str | None, lambda name, text: text and options.parse_numbers(name, text)),
    tuple[LoraStrength, ...]: (list[str] | None, lambda _, texts: options.parse_loras(texts)),
    tuple[GuideImage, ...]: (list[str] | None, lambda _, texts: options.parse_guides(texts)),
    Size | None: (str | None, None),
    str | os.PathLike[str] | None: (Path | None, None),
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """Options that stand for one parameter of a command's function, and the value that they come to."""

    parameters: list[Parameter]
    build: Callable[[Mapping[str, Any]], Any]


def command(
    *, asked: Iterable[str] = (), config: Iterable[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function: its parameters become options, and some of them stand for several.

    ``asked`` gets the fields of a request that the options give; ``config`` an :class:`EngineConfig`; ``interrupt`` the
    :class:`~.interrupt.Interrupt` of the process; a parameter whose type is a dataclass of described or annotated fields,
    such as :class:`~.options.OutputOptions`, one of these. Any other is one option, and a described field its default.
    Every command takes --debug, and tells errors and Ctrl-C in one line.

    Args:
        asked: fields of a request, by their names in the engine.
        config: fields of the machine.
    """
    fields = [options.ASKED[name] for name in asked]
    machine = [options.CONFIG[name] for name in config]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function).parameters
        parts = {
            name: _part(parameter, fields, machine) for name, parameter in own.items() if name != "interrupt"
        }
        debug = _parameter(offer("debug", bool, cast(Any, options.DEBUG), "command"))
        made = [*(option for part in parts.values() for option in part.parameters), debug]
        models = [name for name in _MODELS if name in {option.name for option in made}]
        if models:
            made.append(
                _parameter(offer("revision", cast(Any, str | None), cast(Any, options.REVISION), "command"))
            )

        @wraps(function)
        def run(**given: Any) -> None:
            is_json = bool(given.get("json_progress"))
            # A shell leaves the ~ of --out=~/video.mp4 as it is.
            given = {name: _expanded_paths(value) for name, value in given.items()}
            revision = given.pop("revision", None)
            with readable_errors(debug=given["debug"], is_json=is_json) as interrupt:
                if revision is not None:
                    given[models[0]] = _at_revision(given[models[0]], revision)
                values = {name: part.build(given) for name, part in parts.items()}
                function(**values, **({"interrupt": interrupt} if "interrupt" in own else {}))

        keywords = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in made]
        run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]  # for inspect alone
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in made}
        return run

    return decorate


def _expanded_paths(value: Any) -> Any:
    if isinstance(value, list):
        return [_expanded_paths(item) for item in value]
    return expanded(value) if isinstance(value, Path) else value


def _at_revision(model: str | None, revision: str) -> str:
    if model is None or "/" not in model or os.path.exists(model):
        raise ConfigError(f"--revision needs a model of the Hub (owner/name), got {model}")
    return f"{model}@{revision}"


def _part(parameter: Parameter, asked: list[Offered], machine: list[Offered]) -> _Part:
    name, default = parameter.name, parameter.default
    kind: Any = parameter.annotation
    if name == "asked":
        return _Part([_parameter(known) for known in asked], lambda given: _read(asked, given))
    if name == "config":
        return _Part(
            [_parameter(known) for known in machine], lambda given: EngineConfig(**_read(machine, given))
        )
    if isinstance(default, dataclasses.Field):
        return _Part([_parameter(offer(name, kind, default, "command"))], lambda given: given[name])
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return _Part([parameter], lambda given: given[name])
    described = offered(kind, "command")
    plain = [
        Parameter(entry.name, Parameter.KEYWORD_ONLY, default=entry.default, annotation=entry.type)
        for entry in dataclasses.fields(kind)
        if entry.name not in described
    ]
    group = list(described.values())
    return _Part(
        [*map(_parameter, group), *plain],
        lambda given: kind(**_read(group, given), **{entry.name: given[entry.name] for entry in plain}),
    )


def _parameter(known: Offered) -> Parameter:
    # An image's type is text, for it names PIL's.
    kind = str | None if isinstance(known.type, str) else _FORMS.get(known.type, (known.type, None))[0]
    default = None if known.default == () else known.default
    if default is dataclasses.MISSING:
        default = None if isinstance(known.type, str) else Parameter.empty
    annotation: Any = Annotated[kind, options.option(known)]
    return Parameter(known.field, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _read(fields: list[Offered], given: Mapping[str, Any]) -> Asked:
    """Values of the engine from those of the options."""
    values: Asked = {}
    for known in fields:
        _, read = _FORMS.get(known.type, (None, None))
        value = given[known.field]
        values[known.field] = read(known.name.split()[0], value) if read else value
    return values | (options.parse_order(values["order"]) if "order" in values else {})
