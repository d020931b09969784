"""Files of models: folders and repositories read, folders written whole or not at all, pushed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_core.lazy import lazily

if TYPE_CHECKING:
    from rag_core.hub.atomic import atomic_folder as atomic_folder
    from rag_core.hub.atomic import atomic_write as atomic_write
    from rag_core.hub.atomic import check_writable as check_writable
    from rag_core.hub.atomic import clear as clear
    from rag_core.hub.atomic import install as install
    from rag_core.hub.atomic import name_full_disk as name_full_disk
    from rag_core.hub.atomic import recover as recover
    from rag_core.hub.damaged import AGAIN as AGAIN
    from rag_core.hub.damaged import DamagedFileError as DamagedFileError
    from rag_core.hub.damaged import located as located
    from rag_core.hub.damaged import locating as locating
    from rag_core.hub.damaged import reading as reading
    from rag_core.hub.files import HUB_KWARGS as HUB_KWARGS
    from rag_core.hub.files import checked_name as checked_name
    from rag_core.hub.files import commit_of as commit_of
    from rag_core.hub.files import is_local as is_local
    from rag_core.hub.files import list_commit as list_commit
    from rag_core.hub.files import list_files as list_files
    from rag_core.hub.files import resolve_file as resolve_file
    from rag_core.hub.files import split_hub_kwargs as split_hub_kwargs
    from rag_core.hub.json_files import bounded_json as bounded_json
    from rag_core.hub.json_files import parse_json as parse_json
    from rag_core.hub.json_files import read_json as read_json
    from rag_core.hub.keywords import loading_info as loading_info
    from rag_core.hub.keywords import whole_device as whole_device
    from rag_core.hub.local_names import DEMO as DEMO
    from rag_core.hub.local_names import DEMO_ENCODER as DEMO_ENCODER
    from rag_core.hub.local_names import local_knowledge as local_knowledge
    from rag_core.hub.local_names import local_name as local_name
    from rag_core.hub.push import Pushable as Pushable
    from rag_core.hub.push import Saving as Saving
    from rag_core.hub.push import model_card as model_card
    from rag_core.hub.push import push_folder as push_folder
    from rag_core.hub.text_lines import Line as Line
    from rag_core.hub.text_lines import check_text as check_text
    from rag_core.hub.text_lines import encoding_of as encoding_of
    from rag_core.hub.text_lines import numbered as numbered
    from rag_core.hub.text_lines import parse_object as parse_object
    from rag_core.hub.text_lines import read_lines as read_lines
    from rag_core.hub.text_lines import scan_lines as scan_lines
    from rag_core.hub.text_lines import text_fault as text_fault

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "atomic": [
            "atomic_folder",
            "atomic_write",
            "check_writable",
            "clear",
            "install",
            "name_full_disk",
            "recover",
        ],
        "damaged": ["AGAIN", "DamagedFileError", "located", "locating", "reading"],
        "files": [
            "HUB_KWARGS",
            "checked_name",
            "commit_of",
            "is_local",
            "list_commit",
            "list_files",
            "resolve_file",
            "split_hub_kwargs",
        ],
        "json_files": ["bounded_json", "parse_json", "read_json"],
        "keywords": ["loading_info", "whole_device"],
        "local_names": ["DEMO", "DEMO_ENCODER", "local_knowledge", "local_name"],
        "push": ["Pushable", "Saving", "model_card", "push_folder"],
        "text_lines": [
            "Line",
            "check_text",
            "encoding_of",
            "numbered",
            "parse_object",
            "read_lines",
            "scan_lines",
            "text_fault",
        ],
    },
)
