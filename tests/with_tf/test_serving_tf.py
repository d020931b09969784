"""Servers and threads over models of rag_tf."""

import pytest

import rag_tf
from tests.support import serving_models as checks


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return checks.write_model(tmp_path_factory.mktemp("serving"), rag_tf)


@pytest.fixture(scope="module")
def model(home):
    return checks.opened(home, rag_tf)


def test_answers_over_http_are_the_models(model):
    checks.check_answers_are_the_model_s(model)


def test_threads_get_their_own_answers(model):
    checks.check_threads_get_their_own_answers(model)


@pytest.mark.parametrize("options", checks.LONG[::2], ids=lambda o: f"{o['head']}-{o['num_beams']}")
def test_searches_end_where_nobody_waits(model, options, caplog):
    caplog.set_level("DEBUG", "rag_tf")
    checks.check_searches_end_where_nobody_waits(model, options)
    # all but the first call ran in a graph
    assert caplog.text.count("generate runs step by step") == 1


def test_a_deadline_ends_the_search(model):
    checks.check_a_deadline_ends_the_search(model)
