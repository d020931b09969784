"""Pushing a saved folder to the hub, with a model card."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rag_core.hub.atomic import clear
from rag_core.hub.keywords import saving_keywords

_USUAL = "rag_torch.RagTokenForGeneration"


def model_card(
    title: str,
    *,
    summary: str = "",
    language: str | None = "en",
    license: str | None = None,
    tags: Sequence[str] = (),
    base_models: Sequence[str] = (),
    datasets: Sequence[str] = (),
    figures: Mapping[str, float | str] | None = None,
    body: str = "",
    loader: str = _USUAL,
    use: Sequence[str] = (),
) -> str:
    """The text of a model card: YAML front matter as the hub reads it, then Markdown.

    Args:
        title: heading.
        summary: first paragraph.
        language: language code, or None.
        license: licence identifier of the hub, or None.
        tags: besides "rag" and "retrieval-augmented-generation".
        base_models: repositories this model was made from.
        datasets: data sets it was trained on or looks things up in.
        figures: measured results, name to value.
        body: more Markdown.
        loader: package and class that load it, which the card shows.
        use: lines of Python that the card shows in place of those of `loader`.
    """
    lines = ["---", "library_name: dualrag", "pipeline_tag: question-answering"]
    for name, value in (("language", language), ("license", license)):
        if value:
            lines.append(f"{name}: {json.dumps(value)}")
    everything = list(dict.fromkeys(["rag", "retrieval-augmented-generation", *tags]))
    for name, values in (("tags", everything), ("base_model", base_models), ("datasets", datasets)):
        if values:
            lines += [f"{name}:", *(f"- {json.dumps(value)}" for value in values)]
    lines += ["---", "", f"# {title}", ""]
    if summary:
        lines += [summary, ""]
    if figures:
        lines += [
            "| measure | value |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in figures.items()),
            "",
        ]
    lines += ["## Use", "", "```python", *(use or _loading(loader)), "```", ""]
    if body:
        lines += [body.rstrip(), ""]
    return "\n".join(lines)


def _loading(loader: str) -> list[str]:
    """Lines of Python that load a repository with `loader`, "package.Class"."""
    package, _, kind = loader.partition(".")
    name = 'name = "owner/name"  # this repository'
    if kind not in _WITH_RETRIEVER:
        return [f"from {package} import {kind}", "", name, f"loaded = {kind}.from_pretrained(name)"]
    return [
        f"from {package} import {', '.join(sorted(('RagRetriever', kind, 'RagTokenizer')))}",
        "",
        name,
        "tokenizer = RagTokenizer.from_pretrained(name)",
        "retriever = RagRetriever.from_pretrained(name)",
        f"model = {kind}.from_pretrained(name, retriever=retriever)",
    ]


_WITH_RETRIEVER = ("RagModel", "RagSequenceForGeneration", "RagTokenForGeneration")
_PACKAGES = ("rag_core", "rag_torch", "rag_tf")


def loader_of(saved: Any) -> str | None:
    """Package and class that load what was saved; None where it is of no class of ours."""
    for kind in type(saved).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in _PACKAGES and not kind.__name__.startswith("_") and kind is not Pushable:
            return f"{package}.{kind.__name__}"
    return None


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload model",
    card: str | None = None,
    loader: str | None = None,
) -> str:
    """Uploads a folder to a repository of the hub, made if missing.

    Without a README.md in the folder and in the repository a model card is added.

    Args:
        folder: what to upload.
        repo_id: "owner/name".
        token: access token; None or True for the stored one.
        private: visibility of a new repository; None for the account's default.
        revision: branch, made if missing; None for the main one.
        commit_message: message of the commit.
        card: text of README.md; None for a short one.
        loader: package and class that the short one shows, as "rag_tf.RagModel".

    Returns:
        The repository's address.

    Raises:
        OSError: no such folder, or the hub refused or couldn't be reached.
    """
    from huggingface_hub import HfApi

    root = Path(folder)
    if not root.is_dir():
        raise OSError(f"Nothing to push: no folder {str(folder)!r}.")
    clear(root)
    api = HfApi(token=token)
    try:
        address = str(api.create_repo(repo_id, private=private, exist_ok=True))
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        if card is None and not (root / "README.md").exists():
            if not api.file_exists(repo_id, "README.md", revision=revision):
                card = model_card(repo_id.split("/")[-1], loader=loader or _USUAL)
        api.upload_folder(
            repo_id=repo_id, folder_path=root, revision=revision, commit_message=commit_message
        )
        if card is not None:
            api.upload_file(
                path_or_fileobj=card.encode(),
                path_in_repo="README.md",
                repo_id=repo_id,
                revision=revision,
                commit_message="Add model card",
            )
    except Exception as error:
        raise OSError(
            f"Pushing {str(folder)!r} to {repo_id!r} failed: {type(error).__name__}: "
            f"{str(error).strip()[:300]}. Log in with `hf auth login` or pass token=, and check "
            "the repository's name and your right to write."
        ) from error
    return address


@dataclass(frozen=True)
class Saving:
    """What the keywords of a `save_pretrained` ask for, besides writing files.

    Attributes:
        here: False where another process writes.
        push: arguments of `push_folder` besides the folder; None not to push.
    """

    here: bool = True
    push: dict[str, Any] | None = None
    _repo_id: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, *args: Any, **kwargs: Any) -> Saving:
        """Read the keywords; see `saving_keywords`."""
        return cls(*saving_keywords(*args, **kwargs))

    def finish(self, folder: str | Path, saved: Any = None) -> None:
        """Push the folder that was written, if that was asked for; its name is the repository's by
        default.

        Args:
            folder: what was written.
            saved: what wrote it, for the model card.
        """
        if self.push is not None:
            push_folder(
                folder, self._repo_id or Path(folder).name, loader=loader_of(saved), **self.push
            )


class Pushable:
    """What has `save_pretrained(folder)` and can so be pushed."""

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Save to a temporary folder and push it.

        Args:
            repo_id: "owner/name".
            **kwargs: `token`, `private`, `revision`, `commit_message`, `card`, as `push_folder`;
                `max_shard_size` and `safe_serialization` of models, as `save_pretrained`; what
                transformers takes besides and changes nothing is passed over.

        Returns:
            The repository's address.
        """
        push = Saving.of(push_to_hub=True, **kwargs).push or {}
        written = {
            name: kwargs[name]
            for name in ("max_shard_size", "safe_serialization")
            if name in kwargs
        }
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **written)  # type: ignore[attr-defined]
            return push_folder(folder, repo_id, loader=loader_of(self), **push)
