"""Files of models: a local folder or a repository of the hub, read; pushed.

Names and folders are treated alike everywhere; `HF_HUB_OFFLINE` and the other variables of
huggingface_hub hold.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, overload

from rag_core.hub.atomic import atomic_write, is_draft, recover
from rag_core.hub.json_files import read_json
from rag_core.hub.keywords import loading_keywords
from rag_core.hub.local_names import local_name

__all__ = [
    "HUB_KWARGS",
    "commit_of",
    "is_local",
    "list_commit",
    "list_files",
    "resolve_file",
    "split_hub_kwargs",
]

HUB_KWARGS = ("cache_dir", "token", "revision", "local_files_only", "force_download", "subfolder")
# the hub's cache names a snapshot's folder by its commit
_SNAPSHOT = re.compile(r".*/snapshots/([0-9a-f]{40})/.")
_NOTHING = type(None)
_KNOWN_NAMES: set[str] = set()
_SECONDS = 5  # for the hub to say whether it knows a name
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "cache_dir": ((str, os.PathLike, _NOTHING), "a folder"),
    "token": ((str, bool, _NOTHING), "a text, True or False"),
    "revision": ((str, _NOTHING), "a branch, tag or commit as text"),
    "local_files_only": ((bool, _NOTHING), "True or False"),
    "force_download": ((bool, _NOTHING), "True or False"),
    "subfolder": ((str, _NOTHING), "a folder's name"),
}


def split_hub_kwargs(
    kwargs: Mapping[str, Any], kind: str | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments that say where files come from, and all others.

    What changes nothing here is in neither (see `rag_core.hub.keywords`).

    Args:
        kwargs: of a `from_pretrained`.
        kind: "tokenizer" for those of a tokenizer.

    Returns:
        Two new dictionaries: those named in `HUB_KWARGS`, and the rest.

    Raises:
        ValueError: a keyword asks for something that is not done here; the message says what to
            write instead.
    """
    rest = loading_keywords(kwargs, kind)
    hub = {name: rest.pop(name) for name in HUB_KWARGS if name in rest}
    return hub, rest


def checked_name(name_or_path: Any) -> str:
    """The name of what is to be loaded, as text.

    Raises:
        TypeError: neither a str nor a path.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise TypeError(
            "pretrained_model_name_or_path must be a folder or a repository id, got "
            f"{name_or_path!r:.200}. Write it as a str or Path"
        )
    return os.fspath(name_or_path)


def is_local(name_or_path: str | Path) -> bool:
    """Whether a name means a place on this machine rather than a repository of the hub.

    True for what exists, for what is written as a path (`./x`, `~/x`, absolute, several slashes,
    back slashes), for `a/b` where a folder `a` exists, and for the demo's names.
    """
    return _is_path(local_name(name_or_path))


def _is_path(name_or_path: str | Path) -> bool:
    """`is_local` of a name that is none of the demo's."""
    text = str(name_or_path)
    path = Path(text).expanduser()
    if isinstance(name_or_path, Path) or path.exists() or path.is_absolute():
        return True
    if (
        not text
        or text.startswith((".", "~"))
        or "\\" in text
        or text.count("/") > 1
        or text.endswith("/")
    ):
        return True
    return "/" in text and path.parent.is_dir()


@overload
def resolve_file(
    name_or_path: str | Path,
    filename: str,
    *,
    required: Literal[True] = True,
    repo_type: str | None = None,
    **hub: Any,
) -> Path: ...


@overload
def resolve_file(
    name_or_path: str | Path,
    filename: str,
    *,
    required: bool,
    repo_type: str | None = None,
    **hub: Any,
) -> Path | None: ...


def resolve_file(
    name_or_path: str | Path,
    filename: str,
    *,
    required: bool = True,
    repo_type: str | None = None,
    **hub: Any,
) -> Path | None:
    """The local path of one file of a folder or repository, fetched if need be.

    Args:
        name_or_path: folder, or repository id such as "facebook/rag-token-nq".
        filename: path of the file inside, with forward slashes.
        required: raise when the file is missing; otherwise return None.
        repo_type: "dataset" for data sets; None for models.
        **hub: options of `HUB_KWARGS`; a local folder heeds `subfolder` only.

    Raises:
        OSError: the folder or repository isn't there or can't be reached, or (if required) has no
            such file.
        TypeError: an unknown option.
    """
    options = _options(hub)
    checked_name(name_or_path)
    name_or_path = local_name(name_or_path, options)
    subfolder = (options.pop("subfolder", None) or "").strip("/")
    inside = filename
    if subfolder:
        inside = f"{subfolder}/{filename}"
    if _is_path(name_or_path):
        return _local_file(Path(name_or_path).expanduser(), inside, required)

    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    name = str(name_or_path)
    _check_name(name, repo_type, options)
    try:
        return Path(hf_hub_download(name, inside, repo_type=repo_type, **options))
    except Exception as error:
        if not required and isinstance(error, EntryNotFoundError):
            cached = {key: options.get(key) for key in ("cache_dir", "revision")}
            unknown = isinstance(error, LocalEntryNotFoundError) and not _offline(options)
            # A str would be a path and None means "never asked": any other object marks a file
            # known to be absent.
            if not unknown or not isinstance(
                try_to_load_from_cache(name, inside, repo_type=repo_type, **cached), str | None
            ):
                return None
        raise OSError(_reason(name, inside, error, options)) from error


def list_files(name_or_path: str | Path, *, repo_type: str | None = None, **hub: Any) -> list[str]:
    """Sorted paths, with forward slashes, of all files of a folder or repository (below
    `subfolder`, relative to it).

    Offline, what was fetched before is listed.

    Raises:
        OSError: the folder or repository isn't there or can't be reached.
    """
    return list_commit(name_or_path, repo_type=repo_type, **hub)[1]


def list_commit(
    name_or_path: str | Path,
    *,
    repo_type: str | None = None,
    record: Path | None = None,
    **hub: Any,
) -> tuple[str | None, list[str]]:
    """As `list_files`, together with the commit that these files are of.

    Several files of one repository are to be fetched with ``revision=`` that commit: a branch may
    move between two of them, and files of two commits do not belong together.

    Args:
        name_or_path: folder or repository.
        repo_type: "dataset" for data sets; None for models.
        record: a file that keeps the answer, for the times without a network; without it, what was
            fetched into the hub's cache is listed then.
        **hub: options of `HUB_KWARGS`.

    Returns:
        The commit, None for a folder, and the files.

    Raises:
        OSError: the folder or repository isn't there or can't be reached.
    """
    options = _options(hub)
    name_or_path = local_name(name_or_path, options)
    subfolder = (options.get("subfolder") or "").strip("/")
    if _is_path(name_or_path):
        root = Path(name_or_path).expanduser() / subfolder
        if not root.is_dir():
            raise OSError(
                f"No folder {str(root)!r} (in full: {root.absolute()}){_near(str(root))}; check the "
                "path."
            )
        recover(root)
        return None, _files_below(root)

    name = str(name_or_path)
    commit, files = _listed(name, repo_type, record, options)
    prefix = f"{subfolder}/".lstrip("/")
    return commit, sorted(file.removeprefix(prefix) for file in files if file.startswith(prefix))


def _listed(
    name: str, repo_type: str | None, record: Path | None, options: Mapping[str, Any]
) -> tuple[str | None, list[str]]:
    from huggingface_hub import HfApi

    if _recorded(record) is None:
        _check_name(name, repo_type, options)
    try:
        if _offline(options):
            raise ConnectionError("offline")
        api = HfApi(token=options.get("token"))
        commit = api.repo_info(name, revision=options.get("revision"), repo_type=repo_type).sha
        files = list(api.list_repo_files(name, revision=commit, repo_type=repo_type))
    except Exception as error:
        if (recorded := _recorded(record)) is not None:
            return recorded
        snapshot = _snapshot(name, repo_type, options)
        if snapshot is None:
            raise OSError(_reason(name, "the list of files", error, options)) from error
        return snapshot.name, _files_below(snapshot)
    if record is not None:
        with atomic_write(record) as draft:
            values = {"name": name, "commit": commit, "files": files}
            draft.write_text(json.dumps(values), encoding="utf-8")
    return commit, files


def _check_name(name: str, repo_type: str | None, options: Mapping[str, Any]) -> None:
    """Asks the hub once and for a short time about a name that is no folder here: many such names
    are misspelt or asked for without a network, and a download would ask time and again.

    Raises:
        OSError: the hub does not answer, or does not know a name of one word.
    """
    if _offline(options) or name in _KNOWN_NAMES or _snapshot(name, repo_type, options):
        return
    from huggingface_hub import HfApi
    from huggingface_hub.utils import GatedRepoError, HFValidationError, RepositoryNotFoundError

    is_word = "/" not in name
    neither = f"No folder {name!r} here{_near(name)}, and "
    try:
        HfApi(token=options.get("token")).repo_info(name, repo_type=repo_type, timeout=_SECONDS)
    except (GatedRepoError, HFValidationError):
        return  # said in full by who fetches
    except RepositoryNotFoundError as error:
        if not is_word:
            return
        raise OSError(
            f"{neither}no such repository on the hub (or a private one: pass token=)."
        ) from error
    except Exception as error:
        if not is_word and not _is_network_error(error):
            return
        reason = type(error).__name__
        raise OSError(
            f"{neither}the hub, which might know a repository of that name, can't be reached "
            f"({reason}). Check the name or the network."
        ) from error
    _KNOWN_NAMES.add(name)


def _is_network_error(error: Exception) -> bool:
    """Whether no server was heard: httpx's and requests' errors, or Python's own."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return not names.isdisjoint(("TransportError", "ConnectionError", "Timeout"))


def _near(name: str) -> str:
    """Which folders have a name like that, for a message."""
    path = Path(name).expanduser()
    try:
        folders = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        return ""
    near = get_close_matches(path.name, folders)
    if not near:
        return ""
    return " (but " + ", ".join(repr(str(path.with_name(each))) for each in near) + ")"


def _recorded(record: Path | None) -> tuple[str, list[str]] | None:
    if record is None:
        return None
    try:
        values = read_json(record)
        return str(values["commit"]), [str(name) for name in values["files"]]
    except (OSError, ValueError, KeyError, TypeError):  # none there, or damaged: as good as none
        return None


def commit_of(path: Path) -> str | None:
    """The commit that a file of the hub's cache is of; None for a file elsewhere."""
    match = _SNAPSHOT.match(path.as_posix())
    return match and match[1]


def _files_below(root: Path) -> list[str]:
    names = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(name.as_posix() for name in names if not any(map(is_draft, name.parts)))


def _options(hub: dict[str, Any]) -> dict[str, Any]:
    for name in hub:
        if name not in HUB_KWARGS:
            raise TypeError(f"Unknown hub option {name!r}; known are {', '.join(HUB_KWARGS)}.")
    for name, (kinds, what) in _KINDS.items():
        if not isinstance(hub.get(name), kinds):
            raise TypeError(
                f"{name} must be {what} or None, got {hub[name]!r:.200}. Leave it out for the "
                "default"
            )
    return {name: value for name, value in hub.items() if value is not None}


def _local_file(folder: Path, inside: str, required: bool) -> Path | None:
    path = folder / inside
    recover(path.parent)
    if path.is_file():
        return path
    if not folder.exists():
        raise OSError(
            f"No folder {str(folder)!r} (looked for {inside} in {folder.absolute()})"
            f"{_near(str(folder))}; check the path."
        )
    if not folder.is_dir():
        raise OSError(f"{str(folder)!r} is a file, where a folder with {inside} is needed.")
    if not required:
        return None
    contents = ", ".join(sorted(entry.name for entry in folder.iterdir())[:20]) or "nothing"
    raise OSError(f"No {inside} in folder {str(folder)!r}; it holds {contents}.")


def _offline(options: Mapping[str, Any]) -> bool:
    from huggingface_hub import constants

    return bool(options.get("local_files_only")) or bool(constants.HF_HUB_OFFLINE)


def _cache(options: Mapping[str, Any]) -> Path:
    from huggingface_hub import constants

    return Path(options.get("cache_dir") or constants.HF_HUB_CACHE).expanduser()


def _snapshot(name: str, repo_type: str | None, options: Mapping[str, Any]) -> Path | None:
    """The folder of what was fetched of a repository before, if any."""
    root = _cache(options) / f"{repo_type or 'model'}s--{name.replace('/', '--')}"
    revision = options.get("revision") or "main"
    reference = root / "refs" / revision
    if reference.is_file():
        revision = reference.read_text().strip()
    folder = root / "snapshots" / revision
    if not folder.is_dir():
        return None
    return folder


def _reason(name: str, what: str, error: Exception, options: Mapping[str, Any]) -> str:
    """Why `what` of a repository could not be had: where it was looked for, and what to do."""
    from huggingface_hub import utils

    revision = options.get("revision") or "main"
    if isinstance(error, utils.HFValidationError):
        return (
            f"{name!r} is neither a folder here nor a possible repository id ('owner/name'); "
            "check it."
        )
    if isinstance(error, utils.GatedRepoError):
        return f"Access to {name!r} must be asked for on the hub; then pass token=. Wanted {what}."
    if isinstance(error, utils.RepositoryNotFoundError):
        return (
            f"No folder {name!r} here and no such repository on the hub (or a private one: pass "
            "token=)."
        )
    if isinstance(error, utils.RevisionNotFoundError):
        return f"Repository {name!r} has no revision {revision!r}; wanted {what}."
    is_cache_miss = isinstance(error, utils.LocalEntryNotFoundError)
    if isinstance(error, utils.EntryNotFoundError) and not is_cache_miss:
        return f"No {what} in repository {name!r} (revision {revision!r})."
    place = f"No folder {name!r} here, and {what} of repository {name!r} (revision {revision!r}) "
    if _offline(options):
        return (
            f"{place}was not fetched before into {_cache(options)}; offline (HF_HUB_OFFLINE or "
            "local_files_only) nothing is fetched. Go online once, or name a folder that holds it."
        )
    reason = str(error).strip()[:300].rstrip(".")
    return (
        f"{place}can't be fetched: {type(error).__name__}: {reason}. Check the network, or name a "
        "folder."
    )
