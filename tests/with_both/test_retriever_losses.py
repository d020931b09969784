"""What teaches the retriever: each loss against its formula in NumPy, and its gradient against finite
differences.
"""

from importlib import import_module

import numpy as np
import pytest

from rag_core.backends import to_numpy, to_tensor

B, N, T, V, PAD = 3, 4, 5, 7, 1
RNG = np.random.default_rng(5)
LOGITS = RNG.normal(size=(B, N, T, V))
LABELS = np.array([[0, 4, 3, 2, 1], [0, 5, 2, 1, 1], [0, 6, 6, 6, 2]])
SCORES = RNG.normal(size=(B, N)) * 2


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def answers_of(logits):
    """log p(y|x, z), a token after another."""
    sums = np.zeros((B, N))
    for b, n, t in np.ndindex(B, N, T - 1):
        token = LABELS[b, t + 1]
        if token != PAD:
            sums[b, n] += log_softmax(logits[b, n, t])[token]
    return sums


def emdr2(answers, scores):
    return -np.log((np.exp(answers) * np.exp(log_softmax(scores))).sum(1))


def pdist(answers, scores, temperature=1.0):
    teacher = np.exp(answers / temperature)
    teacher /= teacher.sum(1, keepdims=True)
    prior = np.exp(log_softmax(scores))
    return (teacher * np.log(teacher / prior)).sum(1)


FORMULAS = {
    "emdr2": (emdr2, {}),
    "pdist": (pdist, {}),
    "pdist at 3": (pdist, {"temperature": 3.0}),
}


@pytest.fixture(scope="module")
def math(backend):
    return import_module(f"rag_{backend}.marginalize")


@pytest.fixture(scope="module")
def slopes(backend):
    """The gradient of a sum of losses, in NumPy."""
    return {"torch": torch_slopes, "tf": tf_slopes}[backend]


def torch_slopes(function, *arrays):
    tensors = [to_tensor(array, "pt").requires_grad_() for array in arrays]
    function(*tensors).sum().backward()
    return [0.0 if tensor.grad is None else tensor.grad.numpy() for tensor in tensors]


def tf_slopes(function, *arrays):
    import tensorflow as tf

    tensors = [tf.constant(array) for array in arrays]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        total = tf.reduce_sum(function(*tensors))
    gradients = tape.gradient(total, tensors)
    return [0.0 if gradient is None else gradient.numpy() for gradient in gradients]


def test_answers_are_added_up_without_a_gradient(backend, math, slopes):
    kind = {"torch": "pt", "tf": "tf"}[backend]
    labels = to_tensor(LABELS, kind)
    found = math.answer_log_probs(to_tensor(LOGITS, kind), labels, PAD)
    np.testing.assert_allclose(to_numpy(found), answers_of(LOGITS), rtol=1e-12)
    if backend == "torch":
        tensor = to_tensor(LOGITS, kind).requires_grad_()
        assert not math.answer_log_probs(tensor, labels, PAD).requires_grad
    else:
        [slope] = slopes(lambda x: math.answer_log_probs(x, labels, PAD), LOGITS)
        assert np.all(slope == 0.0)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_loss_is_its_formula_and_moves_the_prior_alone(backend, math, slopes, name):
    formula, options = FORMULAS[name]
    program = getattr(math, formula.__name__)
    kind = {"torch": "pt", "tf": "tf"}[backend]
    answers = answers_of(LOGITS)
    found = to_numpy(program(to_tensor(answers, kind), to_tensor(SCORES, kind), **options))
    assert found.shape == (B,)
    np.testing.assert_allclose(found, formula(answers, SCORES, **options), rtol=1e-10)

    def of(answers, scores):
        return program(answers, scores, **options)

    towards_answers, towards_scores = slopes(of, answers, SCORES)
    assert np.all(towards_answers == 0.0)
    expected = np.zeros_like(SCORES)
    for place in np.ndindex(*SCORES.shape):
        step = np.zeros_like(SCORES)
        step[place] = 1e-6
        higher, lower = formula(answers, SCORES + step), formula(answers, SCORES - step)
        if options:
            higher = formula(answers, SCORES + step, **options)
            lower = formula(answers, SCORES - step, **options)
        expected[place] = (higher - lower).sum() / 2e-6
    np.testing.assert_allclose(towards_scores, expected, atol=1e-8)


@pytest.mark.parametrize("name", ["emdr2", "pdist"])
def test_a_document_that_was_not_found_counts_for_nothing(backend, math, slopes, name):
    """As if it were not there, with a gradient of 0 and no NaN."""
    formula = FORMULAS[name][0]
    answers, scores = answers_of(LOGITS), SCORES.copy()
    scores[:, -1] = -np.inf
    kind = {"torch": "pt", "tf": "tf"}[backend]
    program = getattr(math, name)
    found = to_numpy(program(to_tensor(answers, kind), to_tensor(scores, kind)))
    np.testing.assert_allclose(found, formula(answers[:, :-1], scores[:, :-1]), rtol=1e-10)
    [slope] = slopes(lambda x: program(to_tensor(answers, kind), x), scores)
    assert np.isfinite(slope).all() and np.all(slope[:, -1] == 0.0)


def test_emdr2_is_the_gradient_that_rag_sequences_marginal_has(math, slopes, backend):
    """Their values are one, too: -log sum_z p(z|x) p(y|x, z)."""
    kind = {"torch": "pt", "tf": "tf"}[backend]
    labels, answers = to_tensor(LABELS, kind), to_tensor(answers_of(LOGITS), kind)
    logits = to_tensor(LOGITS, kind)
    marginal = math.sequence_nll(logits, to_tensor(SCORES, kind), labels, PAD)
    found = math.emdr2(answers, to_tensor(SCORES, kind))
    np.testing.assert_allclose(to_numpy(found), to_numpy(marginal), rtol=1e-10)
    pairs = zip(
        slopes(lambda x: math.emdr2(answers, x), SCORES),
        slopes(lambda x: math.sequence_nll(logits, x, labels, PAD), SCORES),
        strict=True,
    )
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
