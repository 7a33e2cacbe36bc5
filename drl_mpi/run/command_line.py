"""A job's config from a command line. The help texts are the docstrings of its fields."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import shutil
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache, partial
from inspect import cleandoc
from textwrap import fill
from typing import Any, TypeVar

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from drl_mpi.errors import EXIT_OK, UsageError

T = TypeVar("T")

_REGISTRY = ConstructorRegistry()


def parse(presets: Mapping[str, T], arguments: Sequence[str], *, quiet: bool = False) -> T:
    """The config that a command line asks for.

    Args:
        presets: name -> defaults, a dataclass; the first is what is used unless ``--preset NAME``
            chooses another. ``--help`` shows those of the chosen one.
        arguments: without the program.
        quiet: whether to leave it to another rank to print ``--help``.

    Raises:
        UsageError: for what cannot be understood.
        SystemExit: with 0, after ``--help``.
    """
    names = list(presets)
    rest, chosen = list(arguments), names[0]
    for i, argument in enumerate(rest):
        if argument == "--preset" or argument.startswith("--preset="):
            width = 1 if "=" in argument else 2
            chosen = "=".join(rest[i : i + width]).partition("=")[2]
            del rest[i : i + width]
            break
    if chosen not in presets:
        raise UsageError(f"--preset is {chosen!r}; allowed: {', '.join(names)}")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return tyro.cli(
                type(presets[chosen]),
                default=presets[chosen],
                args=rest,
                config=(tyro.conf.OmitArgPrefixes,),
                description=_description(presets[chosen], names),
                registry=_REGISTRY,
            )
    except SystemExit as end:
        if end.code == EXIT_OK:  # --help
            if not quiet:
                print("\n".join(map(_fit, said.getvalue().splitlines())))
            raise
        raise UsageError(_one_line(said.getvalue())) from None


@_REGISTRY.struct_rule
def _fields(info: StructTypeInfo) -> StructConstructorSpec | None:
    """tyro's own rule for dataclasses keeps the docstrings' line breaks and markup in the help."""
    if not dataclasses.is_dataclass(info.type):
        return None
    hints = typing.get_type_hints(info.type, include_extras=True)
    return StructConstructorSpec(
        instantiate=info.type,
        fields=tuple(
            StructFieldSpec(
                name=field.name,
                type=hints[field.name],
                default=getattr(info.default, field.name),
                helptext=partial(_help, info.type, field.name),
            )
            for field in dataclasses.fields(info.type)
        ),
    )


@_REGISTRY.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """INT where tyro would show {None}|INT; what None stands for is in the help text."""
    match typing.get_args(info.type):
        case (type() as kind, types.NoneType):
            return PrimitiveConstructorSpec(
                nargs=1,
                metavar=kind.__name__.upper(),
                instance_from_str=lambda words: None if words == ["None"] else kind(*words),
                is_instance=lambda value: value is None or isinstance(value, kind),
                str_from_instance=lambda value: [str(value)],
            )
    return None


def _help(kind: type, name: str) -> str | None:
    docs = (_docs(base) for base in kind.__mro__ if dataclasses.is_dataclass(base))
    return next((found[name] for found in docs if name in found), None)


@cache
def _docs(kind: type) -> dict[str, str]:
    """Field -> docstring as one line."""
    import docstring_parser  # for --help only

    parameters = docstring_parser.parse_from_object(kind).params
    return {doc.arg_name: _plain(" ".join((doc.description or "").split())) for doc in parameters}


def _description(job: Any, presets: Sequence[str]) -> str:
    paragraphs = re.split(r"\n\n+", cleandoc(type(job).__doc__ or ""))
    paragraphs.append(f"Presets of all defaults: --preset {' | '.join(presets)}")
    return "\n\n".join(_plain(" ".join(each.split())) for each in paragraphs)


def _fit(line: str) -> str:
    """tyro fits its table into the terminal, not what stands above it."""
    if line.startswith(" "):
        return line.rstrip()
    return fill(line, min(shutil.get_terminal_size().columns, 100), break_on_hyphens=False)


def _plain(text: str) -> str:
    """Without marks of code; fields by the names of their options."""

    def unmarked(code: re.Match[str]) -> str:
        word = code[1]
        return "--" + word.replace("_", "-") if re.fullmatch("[a-z]+(_[a-z]+)+", word) else word

    return re.sub("``?([^`]+)``?", unmarked, text)


def _one_line(box: str) -> str:
    """The words of a framed error message, without the frame and the pointer to --help."""
    text = " ".join(re.sub(r"[\u2500-\u257f]+|-{4,}", " ", box).split())
    text = re.split(r"\.? For full helptext| Argument helptext:", text)[0]
    for title in (
        "Parsing error ",
        "Unrecognized options ",
        "Invalid choice ",
        "Value error ",
        "Missing argument ",
    ):
        text = text.removeprefix(title)
    # Of what it goes on to say, whole help texts in the order of a set, the names are enough.
    text, *rest = re.split(r" (?:Perhaps you meant|Arguments similar to ([^:]*)): ", text)
    meant = sorted(
        zip(rest[::2], rest[1::2], strict=True),
        key=lambda similar: f"{text},".find(f"{similar[0]},"),
    )
    names = " ".join(words.split()[0] for _, words in meant)
    return text + (f"; did you mean {names}?" if names else "; see --help")
