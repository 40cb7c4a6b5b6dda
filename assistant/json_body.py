"""Bodies of requests: JSON from a stranger, to a checked model or a 400 that says what is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from starlette.requests import Request

from gptoss_onnx.assistant.errors import ApiError

_DEEPEST = 100  # levels of nesting: a tool's schema has ten
_LONGEST_NUMBER = 300  # digits: Python's own limit is on other machines another


class Body(BaseModel):
    """A part of a request. Fields that are not known are passed over, as other servers do."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


def _whole(value: Any) -> Any:
    """JSON writes whole numbers as 4.0 too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
Model = TypeVar("Model", bound=BaseModel)


async def read_body(request: Request, model: type[Model]) -> Model:
    """The body as `model`; ApiError 400 for anything else."""
    return validated(parse(await request.body()), model)


def validated(content: Any, model: type[Model]) -> Model:
    if not isinstance(content, dict):
        raise ApiError("the body must be a JSON object")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _fault(error, content) from error


def parse(data: bytes) -> Any:
    """JSON as its standard has it: no NaN, no number beyond a double's range, UTF-8."""
    try:
        content = json.loads(
            data.decode("utf-8"),
            parse_constant=_no_number,
            parse_float=_float,
            parse_int=_integer,
        )
    except UnicodeDecodeError as error:
        raise ApiError(f"the body is not UTF-8: byte {error.start} is wrong") from error
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        raise ApiError(f"the body is not JSON: {error}") from error
    _check_depth(content)
    return content


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _integer(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"the number {text[:20]}... is too large")
    return int(text)


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(_DEEPEST):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise _too_deep()


def _children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _too_deep() -> ApiError:
    return ApiError(f"the body is nested too deeply: {_DEEPEST} levels at most")


def _fault(error: ValidationError, content: Any) -> ApiError:
    """The first fault that pydantic found, with the place it is at."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ".".join(map(str, _place(first["loc"], content, first["type"] == "missing"))) or None
    words = first["msg"].removeprefix("Value error, ")
    return ApiError(f"{param}: {words}" if param else words, param=param)


def _place(found: Sequence[int | str], content: Any, missing: bool) -> Iterator[int | str]:
    """Without the alternatives of unions that pydantic names: they are no part of `content`."""
    for i, part in enumerate(found):
        here = content if isinstance(content, dict) else {}
        if isinstance(part, int) and isinstance(content, list):
            yield part
            content = content[part]
        elif part in here:
            yield part
            content = here[part]
        elif missing and isinstance(content, dict) and i == len(found) - 1:
            yield part
