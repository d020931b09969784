"""Settings and arguments that can not be, refused with one text whichever backend was asked."""

import math

import numpy as np
import pytest

from rag_core.training import TrainingConfig

WHOLE = ("batch_size", "accumulation", "max_question_length", "max_target_length")


def test_none_is_a_settings_default_and_arrays_are_plain():
    assert TrainingConfig(batch_size=None, epochs=None, question_encoder=None, seed=None) == TrainingConfig()
    config = TrainingConfig(steps=np.int64(3), learning_rate=np.float32(0.5), batch_size=4.0)
    assert config == TrainingConfig(steps=3, learning_rate=0.5, batch_size=4)
    assert [type(each) for each in (config.steps, config.learning_rate, config.batch_size)] == [int, float, int]


@pytest.mark.parametrize(
    ("setting", "bad", "error", "says"),
    [
        *((name, 10**9, ValueError, "a whole number from 1 to 65536, got 1000000000") for name in WHOLE),
        *((name, bad, ValueError, f", got {bad}") for name in WHOLE for bad in (math.nan, math.inf, 1.5, 0)),
        ("batch_size", True, TypeError, "a whole number from 1 to 65536, got True"),
        ("batch_size", "8", TypeError, "a whole number from 1 to 65536, got '8'"),
        ("steps", 1.5, ValueError, "a whole number from 1 to 100000000, got 1.5"),
        ("steps", 10**9, ValueError, "a whole number from 1 to 100000000, got 1000000000"),
        ("epochs", math.inf, ValueError, "a number above 0 and at most 100000000, got inf"),
        ("learning_rate", math.nan, ValueError, "a finite number above 0, got nan"),
        ("learning_rate", "fast", TypeError, "a finite number above 0, got 'fast'"),
        ("question_encoder_learning_rate", -1, ValueError, "a finite number of at least 0, got -1"),
        ("warmup_steps", 0.5, ValueError, "a whole number from 0 to 100000000, got 0.5"),
        ("beta2", 1, ValueError, "a number of at least 0 and below 1, got 1"),
        ("label_smoothing", 1.1, ValueError, "a number from 0 to 1, got 1.1"),
        ("question_encoder", "some", ValueError, "one of ('all', 'projection', 'frozen'), got 'some'"),
        ("mixed_precision", True, TypeError, "one of (None, 'bf16', 'fp16'), got True"),
        ("seed", -1, ValueError, "a whole number from 0 to 9223372036854775807, got -1"),
    ],
)
def test_settings_of_training_are_refused_where_they_are_made(setting, bad, error, says):
    with pytest.raises(error) as caught:
        TrainingConfig(**{setting: bad})
    assert str(caught.value).startswith(f"{setting} must be ") and says in str(caught.value)
