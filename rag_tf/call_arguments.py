"""How a call's arguments may come in TensorFlow: by name, by place, as a dictionary or a list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

Output = TypeVar("Output")


class Called(Generic[Output]):
    """What a call returns, for type checkers: its arguments may come in more ways than a signature
    can say.
    """

    if TYPE_CHECKING:

        def __call__(
            self, *args: Any, return_dict: Literal[True] | None = None, **kwargs: Any
        ) -> Output:
            """See `call`. For a tuple, which `return_dict=False` gives, write `.to_tuple()`."""
            ...


def spread(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with what stands in `inputs` or in front laid out: a dictionary by name, a
    list by place.

    Raises:
        TypeError: an argument is given twice.
    """
    if "inputs" in kwargs:
        kwargs = {**kwargs}
        inputs = kwargs.pop("inputs")
        if inputs is not None:
            if args or kwargs.get("input_ids") is not None:
                raise TypeError("inputs and input_ids are one argument: give one of them")
            kwargs.pop("input_ids", None)
            args = (inputs,)
    if not args:
        return args, kwargs
    first, rest = args[0], args[1:]
    # tokenizers' batches are mappings by their methods alone
    if isinstance(first, Mapping) or (hasattr(first, "keys") and hasattr(first, "items")):
        # the networks have one kind of token
        by_name = {name: value for name, value in first.items() if name != "token_type_ids"}
        twice = [name for name in by_name if kwargs.get(name) is not None]
        if twice or rest:
            beside = ", ".join(twice) or f"{len(rest)} arguments"
            raise TypeError(
                f"{beside} given beside a dictionary of inputs: put them into it, or use keywords"
            )
        return (), {**kwargs, **by_name}
    if isinstance(first, list | tuple) and _holds_arguments(first):
        return (*first, *rest), kwargs
    return args, kwargs


def _holds_arguments(values: Any) -> bool:
    """Whether a list is one of tensors, arrays or tables of ids, rather than itself a table of
    ids.
    """
    for value in values:
        if value is None or hasattr(value, "shape"):
            return True
        if isinstance(value, list | tuple) and any(isinstance(row, list | tuple) for row in value):
            return True
    return False
