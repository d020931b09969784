"""The cases in which the two backends are compared with each other, as data; numpy only.

A case is a structure (what the networks are), a head, weights and inputs by seed, and generations
to run. Structures are the switches that change the function; what varies beside them goes round by
turn. To add a case, add a structure or a mode.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from conformance.cases import MODELS, with_likely_end
from conformance.generation_cases import generation_cases
from conformance.seeded import seeded_weights
from conformance.training_cases import QUICK, RUNS, SETTINGS
from rag_core.checkpoint.shapes import expected_shapes, tied_names
from rag_core.config.rag import RagConfig
from rag_core.parity.inputs import TARGETS, integers

HEADS = ("token", "sequence")
_DPR, _BART = MODELS["bart"]["question_encoder"], MODELS["bart"]["generator"]
_T5, _GATED = MODELS["t5"]["generator"], MODELS["t5_gated"]["generator"]
_BERT = {key: value for key, value in _DPR.items() if key not in ("model_type", "projection_dim")}
_BERT = {"model_type": "bert", **_BERT}

_ONE_LAYER = {**_BERT, "num_hidden_layers": 1}

# Graphs are what takes time in TensorFlow, so structures share generators, and pooling is tried on
# one layer.
STRUCTURES: dict[str, dict[str, Any]] = {
    **{name: MODELS[name] for name in ("bart", "bart_scaled", "t5", "t5_gated")},
    "mean_bart": {
        "question_encoder": {**_ONE_LAYER, "pooling": "mean", "normalize": True, "scale": 4.0},
        "generator": _BART,
    },
    "cls_t5": {
        "question_encoder": {
            **_ONE_LAYER,
            "pooling": "cls",
            "projection_dim": 20,
            "hidden_act": "gelu_new",
        },
        "generator": _T5,
    },
    "pooler_gated": {"question_encoder": {**_ONE_LAYER, "pooling": "pooler"}, "generator": _GATED},
}
# Their generators are tried in every mode by the others.
_POOLED = ("mean_bart", "cls_t5", "pooler_gated")
# Tried in `make conformance` only.
_MORE: dict[str, dict[str, Any]] = {
    "bart_habits": MODELS["bart_habits"],
    "deep_bart": {
        "question_encoder": {**_DPR, "num_hidden_layers": 3},
        "generator": {
            **_BART,
            "encoder_layers": 1,
            "decoder_layers": 4,
            "activation_function": "gelu_new",
        },
    },
    "silu_bart": {
        "question_encoder": {**_BERT, "pooling": "pooler", "projection_dim": 8},
        "generator": {
            **_BART,
            "scale_embedding": True,
            "activation_function": "silu",
            "encoder_attention_heads": 8,
        },
    },
    "silu_t5": {
        "question_encoder": {**_DPR, "projection_dim": 16},
        "generator": {
            **_GATED,
            "feed_forward_proj": "gated-silu",
            "relative_attention_max_distance": 12,
        },
    },
    "deep_t5": {
        "question_encoder": {**_BERT, "pooling": "mean"},
        "generator": {**_T5, "num_layers": 3, "num_decoder_layers": 1, "num_heads": 2, "d_kv": 12},
    },
}

# What a network does not know of this it passes over.
_CALM = dict.fromkeys(
    ("dropout", "dropout_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0
)

_DRAW = {"do_sample": True, "max_length": 9}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"max_length": 10},
    "beams": {"num_beams": 3, "max_length": 10},
    "sampled": {**_DRAW, "top_k": 20, "seed": 11},
    "long_beams": {
        "num_beams": 4,
        "length_penalty": 2.0,
        "early_stopping": "never",
        "max_length": 12,
    },
    "rules": {
        "no_repeat_ngram_size": 2,
        "min_length": 6,
        "repetition_penalty": 1.4,
        "max_length": 12,
    },
    "beams_sampled": {**_DRAW, "num_beams": 3, "seed": 5},
    "short_beams": {"num_beams": 2, "length_penalty": 0.5, "early_stopping": True, "max_length": 8},
    "nucleus": {**_DRAW, "top_p": 0.8, "temperature": 0.7, "seed": 3},
    "returned": {
        "num_beams": 3,
        "num_return_sequences": 2,
        "no_repeat_ngram_size": 3,
        "max_length": 9,
    },
    "typical": {**_DRAW, "typical_p": 0.7, "eta_cutoff": 0.01, "seed": 8},
    "forced": {"forced_bos_token_id": 9, "forced_eos_token_id": 5, "num_beams": 2, "max_length": 8},
    "no_cache": {"num_beams": 2, "use_cache": False, "max_length": 7},
}
# RAG-Sequence alone has these.
_FAST = {
    "fast": {"num_beams": 3, "decoding": "fast", "max_length": 10},
    "fast_sampled": {**_DRAW, "num_beams": 2, "decoding": "fast", "seed": 4},
    "duplicates": {
        "num_beams": 2,
        "num_return_sequences": 2,
        "do_deduplication": False,
        "max_length": 5,
    },
}
# Of the catalogue's options, those that are tried with sampling, too.
_SAMPLED = ("plain", "min_length", "no_repeat_2", "repetition_penalty", "two_ends", "bias")
_FAULTS = ("none", "masked_row", "missing_document")
_PLACES = ((3, 2), (1, 3), (5, 1), (2, 2))  # n_docs, batch


def drawn_structure(seed: int) -> dict[str, Any]:
    """A structure by seed: sizes, activations and switches that no one chose."""
    draws = iter(integers(f"structure:{seed}", 0, 2**20, (40,)).tolist())

    def one_of(*options: Any) -> Any:
        return options[next(draws) % len(options)]

    heads, width = one_of(1, 2, 3, 4), one_of(4, 6, 8)
    layers = {"encoder_layers": one_of(1, 2, 3), "decoder_layers": one_of(1, 2, 3)}
    act = one_of("gelu", "relu", "gelu_new", "silu", "tanh", "quick_gelu")
    encoder: dict[str, Any] = {
        **_DPR,
        "projection_dim": one_of(0, 12),
        "num_hidden_layers": one_of(1, 2, 3),
    }
    if one_of(True, False):
        encoder |= {
            "model_type": "bert",
            "pooling": one_of("cls", "mean", "pooler"),
            "normalize": one_of(True, False),
        }
    encoder |= {
        "hidden_act": one_of("gelu", "relu", "gelu_new"),
        "num_attention_heads": one_of(1, 2, 4, 8),
    }
    bart = {**_BART, **layers, "d_model": heads * width, "scale_embedding": one_of(True, False)}
    bart |= {
        "encoder_attention_heads": heads,
        "decoder_attention_heads": one_of(1, heads),
        "activation_function": act,
    }
    bart |= {"encoder_ffn_dim": one_of(20, 40), "decoder_ffn_dim": one_of(28, 52)}
    t5 = {
        **_T5,
        "num_layers": layers["encoder_layers"],
        "num_decoder_layers": layers["decoder_layers"],
    }
    t5 |= {
        "num_heads": heads,
        "d_kv": width,
        "d_ff": one_of(20, 40),
        "tie_word_embeddings": one_of(True, False),
    }
    t5 |= {"feed_forward_proj": one_of("relu", "gated-gelu", "gated-silu")}
    t5 |= {
        "relative_attention_num_buckets": one_of(4, 8, 16),
        "relative_attention_max_distance": one_of(10, 20),
    }
    return {"question_encoder": encoder, "generator": one_of(bart, t5)}


def structure(name: str) -> dict[str, Any]:
    """The parts of a structure; `drawn<seed>` is one that is drawn."""
    if name.startswith("drawn"):
        return drawn_structure(int(name.removeprefix("drawn")))
    return {**STRUCTURES, **_MORE}[name]


def config(name: str) -> RagConfig:
    """The RagConfig of a structure, fresh at each call; without dropout, which no two frameworks
    draw alike.
    """
    parts = {part: {**fields, **_CALM} for part, fields in structure(name).items()}
    return RagConfig(**parts, n_docs=3, max_combined_length=18)


@lru_cache(maxsize=8)
def weights(name: str, seed: int) -> dict[str, np.ndarray]:
    """Seeded weights of a structure's heads, tied ones once.

    The end token is made likely, so that searches end.
    """
    rag = config(name)
    shapes = expected_shapes(rag, "token")
    for group in tied_names(rag, "token"):
        for copy in group[1:]:
            shapes.pop(copy, None)
    return with_likely_end(seeded_weights(shapes, seed), rag.generator.eos_token_id)


def _case(
    name: str, parts: str, head: str, turn: int, modes: dict[str, Any], **changes: Any
) -> dict[str, Any]:
    """A case of the structure `parts`; what varies beside it is the turn's."""
    n_docs, batch = _PLACES[turn % len(_PLACES)]
    fault = _FAULTS[turn % 3]
    if n_docs == 1:
        fault = "none"
    case = {
        "name": name,
        "structure": parts,
        "head": head,
        "seed": 1 + turn % 3,
        "n_docs": n_docs,
        "batch": batch,
        "source": ("retrieved", "given")[turn % 2],
        "fault": fault,
        "target": TARGETS[(3 * turn) % len(TARGETS)],
        "label_smoothing": (0.0, 0.1)[turn // 2 % 2],
        "exclude_bos_score": bool(turn // 3 % 2),
        "forward": True,
        "modes": modes,
    }
    return {**case, **changes}


def training_cases(
    steps: int = 100, names: Sequence[str] = tuple(RUNS)
) -> Iterator[dict[str, Any]]:
    """Training runs, each of so many steps."""
    for name in names:
        parts, head, settings = RUNS[name]
        place = {
            "seed": 1,
            "n_docs": 3,
            "source": "retrieved",
            "fault": "none",
            "label_smoothing": 0.1,
            "training": {**SETTINGS, **settings, "steps": steps},
        }
        yield _case(f"training/{name}/{steps}", parts, head, 0, {}, **place)


def _modes(parts: str, head: str) -> dict[str, dict[str, Any]]:
    """The modes that go round for a head of a structure."""
    if parts in _POOLED:
        return {mode: MODES[mode] for mode in ("greedy", "beams")}
    if head == "sequence":
        return {**MODES, **_FAST}
    return MODES


def _turns(names: list[str], count: int) -> Iterator[dict[str, Any]]:
    turn = 0
    for parts in names:
        for head in HEADS:
            modes = list(_modes(parts, head).items())
            for number in range(count):
                pair = [modes[(2 * turn + place) % len(modes)] for place in range(2)]
                yield _case(f"{parts}/{head}/{number}", parts, head, turn, dict(pair))
                turn += 1


def quick_cases() -> list[dict[str, Any]]:
    """The hundred cases of `make test`."""
    cases = list(_turns(list(STRUCTURES), 7))
    many = {"n_docs": 50, "batch": 1, "source": "given", "fault": "none"}
    for parts, head in (("bart", "token"), ("t5_gated", "sequence")):
        modes = {"beams": MODES["beams"]}
        cases.append(_case(f"{parts}/{head}/many", parts, head, 0, modes, **many))
    return [*cases, *training_cases(10, QUICK)]


def generation_groups(seeds: tuple[int, ...] = (1, 2, 4)) -> list[dict[str, Any]]:
    """Every option of the catalogue of generations, every way to sample, with weights of several
    seeds.
    """
    groups: dict[str, dict[str, Any]] = {}
    plain = [
        case for case in generation_cases() if not case["config"] and case["source"] == "given"
    ]
    for number, case in enumerate(plain):
        mode = case["name"].split("/")[-1]
        head = case["head"]
        options = case["options"]
        turn = number % 3
        for seed in seeds:
            name = f"{case['model']}/{head}/options{seed}.{turn}"
            place = {
                "seed": seed,
                "source": ("given", "retrieved", "given")[turn],
                "forward": False,
                "fault": "none",
            }
            group = groups.setdefault(name, _case(name, case["model"], head, turn, {}, **place))
            group["modes"][mode] = options
            if mode.startswith("beams3_") and head == "sequence":
                group["modes"][f"fast_{mode}"] = {**options, "decoding": "fast"}
            if mode in _SAMPLED:
                draws = {"do_sample": True, "seed": seed, "top_k": 30, "temperature": 0.9}
                group["modes"][f"sampled_{mode}"] = {**options, **draws}
    return list(groups.values())


def seed_cases(seeds: int = 20) -> list[dict[str, Any]]:
    """What the float32 tolerances are measured on.

    The main structures, weights and inputs of many seeds.
    """
    cases = []
    for parts in ("bart", "bart_scaled", "t5", "t5_gated"):
        for seed in range(100, 100 + seeds):
            head = HEADS[seed % 2]
            mode = ("beams", "greedy")[seed // 2 % 2]
            name = f"{parts}/{head}/seed{seed}"
            place = {"seed": seed, "fault": "none"}
            cases.append(_case(name, parts, head, seed // 2, {mode: MODES[mode]}, **place))
    return cases


def more_cases(drawn: int = 16) -> list[dict[str, Any]]:
    """More structures, most of them drawn."""
    return list(_turns([*_MORE, *(f"drawn{seed}" for seed in range(1, 1 + drawn))], 3))


def all_cases() -> list[dict[str, Any]]:
    """The quick cases, more structures, two thousand generations, and training."""
    return [*quick_cases(), *more_cases(), *generation_groups(), *training_cases()]


SETS: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
    "quick": quick_cases,
    "more": more_cases,
    "generations": generation_groups,
    "all": all_cases,
    "seeds": seed_cases,
    "training": training_cases,
}


def select(names: list[str]) -> list[dict[str, Any]]:
    """Cases by the name of a set, of a case, or the beginning of one that ends in "/"; those of a
    structure together.

    Raises:
        ValueError: a name that no case has.
    """
    selected: dict[str, dict[str, Any]] = {}
    for name in names:
        if name in SETS:
            cases = list(SETS[name]())
        else:
            cases = [case for case in all_cases() if _is_named(case["name"], name)]
        if not cases:
            raise ValueError(f"no case is named {name!r}; sets are {', '.join(SETS)}")
        selected |= {case["name"]: case for case in cases}
    order = [*STRUCTURES, *_MORE]
    return sorted(
        selected.values(), key=lambda case: [*order, case["structure"]].index(case["structure"])
    )


def _is_named(name: str, pattern: str) -> bool:
    return name == pattern or (pattern.endswith("/") and name.startswith(pattern))


def digest(case: dict[str, Any]) -> str:
    """What a case is, in short: two catalogues may use one name for different things."""
    return hashlib.sha256(repr(sorted(case.items())).encode()).hexdigest()[:16]
