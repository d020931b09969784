"""The generations that are recorded: every option, on every model, for both heads, by rule and not
by choice.

Where 4.37.2 ignores an option or breaks on it (D9 to D11, D31 to D34 of docs/compatibility.md) the
option is not here.
"""

from collections.abc import Callable
from typing import Any

from conformance.cases import MODELS, SEEDS

HEADS = ("token", "sequence")
N_DOCS = (1, 3, 5)
BATCH = 2

_SEARCHES: dict[str, dict[str, Any]] = {
    f"beams{beams}_penalty{penalty}_stop{stop}": {
        "num_beams": beams,
        "length_penalty": penalty,
        "early_stopping": stop,
        "max_length": 11,
    }
    for beams, penalty, stop in [
        *(
            (beams, penalty, stop)
            for beams in (2, 4)
            for penalty in (0.5, 2.0)
            for stop in (False, True, "never")
        ),
        *((3, penalty, stop) for penalty in (0.0, 1.0) for stop in (False, True, "never")),
        (3, -1.0, "never"),
    ]
}

_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "short": {"max_length": 4},
    "min_length": {"min_length": 7, "max_length": 12},
    "min_new_tokens": {"min_new_tokens": 5, "max_length": 12},
    "no_repeat_1": {"no_repeat_ngram_size": 1, "max_length": 9},
    "no_repeat_2": {"no_repeat_ngram_size": 2, "max_length": 14},
    "no_repeat_3": {"no_repeat_ngram_size": 3, "max_length": 16},
    "repetition_penalty": {"repetition_penalty": 1.8, "max_length": 12},
    "repetition_bonus": {"repetition_penalty": 0.6, "max_length": 9},
    "bad_words": {"bad_words_ids": [[64], [86, 83], [54, 78], [47], [53, 23, 6]], "max_length": 12},
    "forced_bos": {"forced_bos_token_id": 9, "max_length": 9},
    "forced_eos": {"forced_eos_token_id": 5, "max_length": 8},
    "prefix": {"prefix_allowed_tokens_fn": "two_in_three", "max_length": 10},
    "two_ends": {"eos_token_id": [2, 47, 86, 54, 33], "max_length": 13},
    "other_end": {"eos_token_id": 23, "max_length": 13},
    "no_end": {"eos_token_id": 95, "max_length": 9},
    "start": {"decoder_start_token_id": 7, "max_length": 8},
    "suppress": {
        "suppress_tokens": [86, 74, 50],
        "begin_suppress_tokens": [83, 64],
        "max_length": 9,
    },
    "forced_ids": {"forced_decoder_ids": [[2, 11], [3, 12]], "max_length": 8},
    "decay": {"exponential_decay_length_penalty": (3, 1.3), "max_length": 14},
    "bias": {"sequence_bias": {(86,): -4.0, (83, 83): 3.0, (12,): 2.0}, "max_length": 10},
    "processor": {"logits_processor": "raise_every_third", "max_length": 10},
}

# 90 tokens or 96: ids above the smaller vocabulary are for the larger one only.
_TOO_LARGE = {"no_end": 88}

_TOKEN_ONLY: dict[str, dict[str, Any]] = {
    "return_2": {"num_beams": 3, "num_return_sequences": 2, "max_length": 10},
    "return_all": {
        "num_beams": 4,
        "num_return_sequences": 4,
        "max_length": 9,
        "early_stopping": True,
    },
    "prefix_by_question": {
        "num_beams": 2,
        "prefix_allowed_tokens_fn": "by_question",
        "max_length": 9,
    },
}

_SEQUENCE_ONLY: dict[str, dict[str, Any]] = {
    "max_new_tokens": {"max_new_tokens": 5},
    "beams_max_new_tokens": {"num_beams": 3, "max_new_tokens": 5},
    "return_2": {"num_beams": 3, "num_return_sequences": 2, "max_length": 10},
    "return_all": {
        "num_beams": 4,
        "num_return_sequences": 4,
        "max_length": 9,
        "early_stopping": True,
    },
    "duplicates_kept": {
        "num_beams": 2,
        "num_return_sequences": 2,
        "do_deduplication": False,
        "max_length": 5,
    },
    "duplicates_short": {
        "num_beams": 3,
        "num_return_sequences": 3,
        "do_deduplication": False,
        "max_length": 3,
    },
    "deduplicated_short": {
        "num_beams": 3,
        "num_return_sequences": 3,
        "do_deduplication": True,
        "max_length": 3,
    },
    "encoder_no_repeat": {"num_beams": 2, "encoder_no_repeat_ngram_size": 1, "max_length": 9},
    "encoder_repetition": {"encoder_repetition_penalty": 1.7, "max_length": 9},
}

_HEAD_ONLY = {"token": _TOKEN_ONLY, "sequence": _SEQUENCE_ONLY}

_HABITS: dict[str, dict[str, Any]] = {
    "plain": {},
    "greedy": {"num_beams": 1},
    "beams2": {"num_beams": 2, "length_penalty": 1.5},
    "longer": {"max_length": 14, "min_length": 8},
    "repeats": {"no_repeat_ngram_size": 3, "num_beams": 2},
}

# Options of the RagConfig itself (Q19, Q20).
_CONFIGS: dict[str, dict[str, Any]] = {
    "rag_beams": {"num_beams": 2, "max_length": 7},
    "rag_returns": {"num_beams": 3, "num_return_sequences": 2, "no_repeat_ngram_size": 2},
    "rag_kept": {"num_beams": 2, "num_return_sequences": 2, "do_deduplication": False},
    "rag_forced_end": {"forced_eos_token_id": 2, "min_length": 3},
}


def generation_cases() -> list[dict[str, Any]]:
    """Every recorded generation.

    Its name, model, head, seed, n_docs, config, options and source of contexts.
    """
    cases: list[dict[str, Any]] = []

    def add(
        model: str,
        head: str,
        name: str,
        options: dict[str, Any],
        source: str = "given",
        **config: Any,
    ) -> None:
        turn = len(cases)
        place = {
            "n_docs": N_DOCS[turn % 3],
            "seed": SEEDS[(turn // 3) % len(SEEDS)],
            "source": source,
        }
        known = {"name": f"{model}/{head}/{name}", "model": model, "head": head}
        cases.append({**known, **place, "config": config, "options": options})

    for model in MODELS:
        for head in HEADS:
            if model == "bart_habits":
                for name, options in _HABITS.items():
                    add(model, head, name, options)
                continue
            for name, options in _OPTIONS.items():
                chosen = dict(options)
                if name in _TOO_LARGE and model.startswith("t5"):
                    chosen["eos_token_id"] = _TOO_LARGE[name]
                add(model, head, name, chosen)
                add(model, head, f"beams3_{name}", {**chosen, "num_beams": 3})
            for name, options in {**_SEARCHES, **_HEAD_ONLY[head]}.items():
                add(model, head, name, options)
            for name, config in _CONFIGS.items():
                add(model, head, name, {}, **config)
            for name, beams in (("retrieved", 1), ("beams2_retrieved", 2)):
                add(model, head, name, {"num_beams": beams, "max_length": 10}, "retriever")
    return cases


def allowed_tokens(rule: str, vocabulary: int) -> Callable[[int, Any], list[int]]:
    """A `prefix_allowed_tokens_fn`: for both frameworks, so it touches the ids as integers only."""

    def two_in_three(batch_id: int, ids: Any) -> list[int]:
        return [token for token in range(vocabulary) if (token + len(ids) + int(ids[-1])) % 3]

    def by_question(batch_id: int, ids: Any) -> list[int]:
        return [token for token in range(vocabulary) if token % 2 == batch_id % 2]

    return {"two_in_three": two_in_three, "by_question": by_question}[rule]


def raise_every_third(ids: Any, scores: Any) -> Any:
    """A `logits_processor`: favours every third token, others at each step.

    Torch tensors in and out.
    """
    raised = scores.clone()
    raised[:, ids.shape[-1] % 3 :: 3] += 1.5
    return raised
