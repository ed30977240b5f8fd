"""Checks JSON documents against the fields that `tests.docs.json_fields` declares."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from goatherd.cli.menu import FORMS
from tests.docs.json_fields import DOCUMENTS, OBJECTS, Fields

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
}


def find_document_name(arguments: Sequence[str], value: Mapping[str, Any]) -> str:
    """Return the name in `DOCUMENTS` of what a command line has printed."""
    if "error" in value:
        return "error"
    words = [str(word) for word in arguments if not str(word).startswith("-")]
    if "--version" in arguments:
        return "--version"
    command = next((other for flag, other in FORMS.get(words[0], {}).items() if flag in arguments), words[0])
    if command in ("audit", "data", "stores"):
        return f"{command} {words[1]}"
    if command == "versions" and words[1:2] in (["label"], ["unlabel"]):
        return "versions label"
    named = [name for name in DOCUMENTS if name.startswith(f"{command} --") and name.split()[1] in arguments]
    # `revoke --plan` prints the same document as `revoke`.
    return named[0] if named else command


class JSONDocuments:
    """Checks documents, and records which declared fields have occurred.

    Attributes:
        seen: The fields that have occurred, by the name of the document or of the object.
    """

    def __init__(self) -> None:
        self.seen: defaultdict[str, set[str]] = defaultdict(set)

    def check(self, arguments: Sequence[str], value: Mapping[str, Any]) -> None:
        """Check the document that a command line has printed."""
        name = find_document_name(arguments, value)
        assert name in DOCUMENTS, f"goatherd {name} prints a JSON document that json_fields.py does not declare"
        self.check_fields(name, DOCUMENTS[name], value)

    def check_fields(self, name: str, fields: Fields, value: Mapping[str, Any], prefix: str = "") -> None:
        """Check an object, whose fields begin with `prefix`."""
        for key, held in value.items():
            path = prefix + key
            field = fields.get(path)
            if field is None:
                assert prefix in fields, f"{name}: the field {path} is not declared in json_fields.py"
                included = fields[prefix].shape
                self.seen[name].add(prefix)
                self.check_fields(included, OBJECTS[included], {key: held})
                continue
            self.seen[name].add(path)
            assert _fits(held, field.form), f"{name}: {path} is declared as {field.form}, but holds {held!r}"
            if field.form.startswith("map") or held is None:
                continue
            for each in held if isinstance(held, list) else [held]:
                if isinstance(each, dict) and field.shape:
                    self.check_fields(field.shape, OBJECTS[field.shape], each)
                elif isinstance(each, dict):
                    self.check_fields(name, fields, each, f"{path}[]." if isinstance(held, list) else f"{path}.")


def _fits(value: object, form: str) -> bool:
    if value is None:
        return form.endswith(" or null")
    form = form.removesuffix(" or null")
    if form.startswith("array of "):
        return isinstance(value, list) and all(_fits(each, form.removeprefix("array of ")) for each in value)
    if form.startswith("map"):
        inner = form.removeprefix("map").removeprefix(" of ")
        return isinstance(value, dict) and (not inner or all(_fits(each, inner) for each in value.values()))
    return isinstance(value, _TYPES[form]) and (form == "boolean" or not isinstance(value, bool))
