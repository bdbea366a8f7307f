"""`sizes` and `size`: named sets of values that one file may be run with, such as a reduced copy.

A size is put over the document before anything is checked, and is then forgotten: the experiment
that comes out is what a study is, whichever way its values were written.
"""

from collections.abc import Iterable
from typing import Any

from orchestrator.config.document import Document, shown
from orchestrator.config.names import nearest
from orchestrator.config.overrides import overridden, put_value
from orchestrator.errors import RequestError

KEYS = {
    "sizes": "Name -> dotted path -> value: what another size of this experiment says instead.",
    "size": "Which of `sizes` to run; left out or null, the file as it stands.",
}
"""The two keys, in words; no other part of the program ever sees them."""


def settled(document: Document, overrides: Iterable[str]) -> Document:
    """`document` in the size that it, or an override, names; then with all other overrides.

    What `--set` says explicitly holds whatever the size says.

    Raises:
        RequestError: the size is none of the file's, or `sizes` is not of the form
            {name: {dotted.path: value}}, or an override breaks a rule.
    """
    texts = list(overrides)
    for text in (text for text in texts if _of_sizes(text)):
        document = overridden(document, text)
    document = _sized(document)
    for text in (text for text in texts if not _of_sizes(text)):
        document = overridden(document, text)
    return document


def _of_sizes(override: str) -> bool:
    return override.partition("=")[0].strip().partition(".")[0] in KEYS


def _sized(document: Document) -> Document:
    sizes, name = document.data.get("sizes"), document.data.get("size")
    _check_form(document, sizes)
    rest = {key: value for key, value in document.data.items() if key not in KEYS}
    plain = Document(document.name, rest, document.origins)
    if name is None:
        return plain
    if not isinstance(name, str) or name not in (sizes or {}):
        known = f"none of this file's sizes{nearest(str(name), sizes)}" if sizes else "no size"
        raise RequestError(
            f"{document.where(('size',))}: size: {shown(name)} is {known}; leave it out for the "
            f"file as it stands{'' if sizes else ', which declares no `sizes`'}"
        )
    for path, value in sizes[name].items():
        written = ("sizes", name, path)
        plain = put_value(plain, path, value, document.where(written))
        inner = {
            (*path.split("."), *at[3:]): line
            for at, line in document.origins.items()
            if at[:3] == written and len(at) > 3
        }
        plain = Document(plain.name, plain.data, {**plain.origins, **inner})
    return plain


def _check_form(document: Document, sizes: Any) -> None:
    if sizes is not None and not isinstance(sizes, dict):
        raise _refusal(document, ("sizes",), sizes)
    for name, values in (sizes or {}).items():
        if not isinstance(values, dict):
            raise _refusal(document, ("sizes", name), values)
        for path in values:
            if path.partition(".")[0] in KEYS or not all(path.split(".")):
                raise RequestError(
                    f"{document.where(('sizes', name, path))}: sizes.{name}: {path!r} is no dotted "
                    "path of a key that a size can set, such as training.epochs"
                )


def _refusal(document: Document, path: tuple[str, ...], found: Any) -> RequestError:
    return RequestError(
        f"{document.where(path)}: {'.'.join(path)}: must be a mapping such as "
        f"{{tiny: {{training.epochs: 2}}}}, is {shown(found)}"
    )
