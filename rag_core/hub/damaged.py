"""One error for every file that is not what its name says, whatever a library raises at it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

AGAIN = "Fetch or write the file again."


class DamagedFileError(OSError, ValueError):
    """A file of a model, an index or a knowledge base that is truncated, altered or not what its
    name says.

    Its text names the file. It is an OSError, as transformers raises for such a file, and a
    ValueError.
    """


@contextmanager
def reading(place: str | Path, fault: str = "can't be read", advice: str = AGAIN) -> Iterator[None]:
    """Turns whatever is raised within it into one `DamagedFileError` that names the file.

    Errors that name it already pass, as do a missing package and a reader's wish to stop.

    Args:
        place: the file or folder.
        fault: what the error says of it.
        advice: what to do.

    Raises:
        DamagedFileError: from the error that was raised.
    """
    try:
        yield
    except (ImportError, FileNotFoundError, PermissionError, DamagedFileError):
        raise
    except BaseException as error:
        # Rust's panics come out of tokenizers and safetensors as errors that are no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, OSError | ValueError | TypeError) and str(place) in str(error):
            if not isinstance(error, UnicodeError):  # never raised by hand
                raise
        reason = " ".join(str(error).split())[:300]
        if type(error) not in (ValueError, OSError) or not reason:
            reason = f"{type(error).__name__}: {reason}"
        raise DamagedFileError(f"{place} {fault} ({reason}). {advice}") from error


def located(error: Exception, where: str) -> Exception:
    """The same TypeError or ValueError, saying where it arose."""
    message = f"{where}: {error}"
    if isinstance(error, TypeError):
        return TypeError(message)
    return ValueError(message)


@contextmanager
def locating(where: str) -> Iterator[None]:
    """Whatever values of a file lead to within it is a TypeError or ValueError that says where
    they stand.
    """
    try:
        yield
    except OSError:  # they name their file
        raise
    except (TypeError, ValueError) as error:
        raise located(error, where) from error
    except (AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        raise ValueError(
            f"{where} holds a value that it can't ({type(error).__name__}: {error}). Mend it."
        ) from error
