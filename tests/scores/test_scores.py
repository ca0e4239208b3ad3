"""Every score against numpy, and what is fixed on the clean output."""

from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from draws import draw

from lightning_xai.scores import Custom, Logit, RawOutput, Score, as_score

CLASSES, TARGET = 4, [3, 0, 2, 2, 1]


def close(found, expected):
    torch.testing.assert_close(
        found, torch.as_tensor(expected, dtype=found.dtype), rtol=1e-9, atol=1e-9, equal_nan=True
    )


def softmax(z):
    return np.exp(z) / np.exp(z).sum(0)


def comb_classes(z, y, clean):
    """Minus the largest change, over the other classes, of their lead on y."""
    change = (softmax(z) - softmax(z)[y]) - (softmax(clean) - softmax(clean)[y])
    return -max((change[c] for c in range(len(z)) if c != y), key=abs)


def runner_up(clean, y):
    return max((c for c in range(len(clean)) if c != y), key=lambda c: clean[c])


# The score of one row z, for the target y, bound to the clean row.
SCORES = {
    "probability": lambda z, y, _: softmax(z)[y],
    "log_probability": lambda z, y, _: z[y] - np.log(np.exp(z).sum()),
    "logit": lambda z, y, _: z[y],
    "value": lambda z, y, _: z[y],
    "sigmoid": lambda z, y, _: 1 / (1 + np.exp(-z[y])),
    "margin": lambda z, y, clean: z[y] - z[runner_up(clean, y)],
    "comb_classes": comb_classes,
}
every_score = pytest.mark.parametrize("name", SCORES)


@every_score
def test_scores_of_classes_match_their_formulas(name):
    clean, other = draw(5, CLASSES), draw(5, CLASSES)
    bound = as_score(name).bind(clean, torch.tensor(TARGET), samples=5)
    for output in (clean, other):
        rows = zip(output.numpy(), TARGET, clean.numpy(), strict=True)
        close(bound(output), [SCORES[name](z, y, before) for z, y, before in rows])


@every_score
def test_scores_of_positions_match_their_formulas(name):
    """Read at each position of the region in which the target is predicted for the clean input, then averaged."""
    clean, other = draw(5, CLASSES, 3, 6), draw(5, CLASSES, 3, 6)
    bound = as_score(name).bind(clean, torch.tensor(TARGET), samples=5)
    for output in (clean, other):
        expected = []
        for z, y, before in zip(output.numpy(), TARGET, clean.numpy(), strict=True):
            region = [p for p in np.ndindex(3, 6) if name == "value" or before[(slice(None), *p)].argmax() == y]
            if name == "comb_classes":  # the region's mean probabilities make one row
                mean = [np.log(np.mean([softmax(o[(slice(None), *p)]) for p in region], 0)) for o in (z, before)]
                expected.append(comb_classes(mean[0], y, mean[1]))
            else:
                each = [SCORES[name](z[(slice(None), *p)], y, before[(slice(None), *p)]) for p in region]
                expected.append(np.mean(each))
        close(bound(output), expected)


def test_score_is_nan_where_the_class_is_predicted_nowhere():
    clean = torch.zeros(2, 3, 4)
    clean[:, 1] = 1.0
    close(as_score("logit").bind(clean, torch.tensor([1, 2]), samples=2)(clean), [1.0, np.nan])


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_one_column_is_a_binary_classifier(shape):
    z = draw(*shape)
    bound = as_score("sigmoid").bind(z, torch.tensor([1, 0, 1]), samples=3)
    p = 1 / (1 + np.exp(-z.flatten().numpy()))
    close(bound(z), [p[0], 1 - p[1], p[2]])
    assert bound.classes == 2
    assert bound.prediction.tolist() == (z.flatten() > 0).long().tolist()


def test_one_column_with_positions_is_a_binary_segmentation():
    clean, other = draw(2, 1, 5), draw(2, 1, 5)
    bound = as_score("sigmoid").bind(clean, torch.tensor([1, 0]), samples=2)
    p = 1 / (1 + np.exp(-other[:, 0].numpy()))
    inside = clean[:, 0].numpy() > 0
    close(bound(other), [p[0][inside[0]].mean(), (1 - p[1])[~inside[1]].mean()])


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_one_column_is_a_regression(shape):
    z = draw(*shape)
    close(as_score("value").bind(z, 0, samples=3)(z), z.flatten())


def test_the_runner_up_stays_the_one_of_the_clean_output():
    clean, other = torch.tensor([[5.0, 4.0, 1.0]]), torch.tensor([[5.0, 0.0, 9.0]])
    bound = as_score("margin").bind(clean, 0, samples=1)
    close(bound(clean), [1.0])
    close(bound(other), [5.0])


def test_target_takes_indices_one_index_or_predicted():
    z = draw(4, 3)
    logit = as_score("logit")
    close(logit.bind(z, torch.tensor([0, 2, 1, 1]), samples=4)(z), z[range(4), [0, 2, 1, 1]])
    close(logit.bind(z, torch.tensor([0, 2, 1, 1], dtype=torch.uint8), samples=4)(z), z[range(4), [0, 2, 1, 1]])
    close(logit.bind(z, 2, samples=4)(z), z[:, 2])
    close(logit.bind(z, "predicted", samples=4)(z), z.max(1).values)
    assert logit.bind(z, 2, samples=4).prediction.tolist() == z.numpy().argmax(1).tolist()


def test_the_prediction_of_positions_is_the_most_frequent_class():
    z = torch.nn.functional.one_hot(torch.tensor([[2, 1, 2, 0], [0, 0, 0, 1]]), 3).movedim(-1, 1).double()
    assert as_score("logit").bind(z, "predicted", samples=2).target.tolist() == [2, 0]


@every_score
@pytest.mark.parametrize("positions", [(), (6,)])
def test_bound_score_of_selected_and_repeated_rows(name, positions):
    clean, target, rows = draw(3, CLASSES, *positions), [0, 1, 3], [2, 0, 2, 1]
    other, score = draw(4, CLASSES, *positions), as_score(name)
    bound = score.bind(clean, torch.tensor(target), samples=3)
    alone = [score.bind(clean[row : row + 1], target[row], samples=1) for row in rows]
    expected = [one(output.unsqueeze(0)) for one, output in zip(alone, other, strict=True)]
    close(bound.at(torch.tensor(rows))(other), torch.cat(expected))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_are_scored_in_single(dtype):
    z = draw(3, 4).to(dtype)
    assert as_score("probability").bind(z, 0, samples=3)(z).dtype == torch.float32


# Models that return more than a tensor

Output = namedtuple("Output", ["features", "logits"])
FEATURES, LOGITS = torch.zeros(3, 7), torch.arange(6.0).view(3, 2)


@pytest.mark.parametrize(
    ("output", "key"),
    [
        ({"features": FEATURES, "logits": LOGITS}, "logits"),
        ((FEATURES, LOGITS), 1),
        ([FEATURES, LOGITS], -1),
        (Output(FEATURES, LOGITS), 1),
        (Output(FEATURES, LOGITS), "logits"),
        (SimpleNamespace(features=FEATURES, logits=LOGITS), "logits"),
    ],
)
def test_output_picks_the_tensor(output, key):
    for target in (0, 1):
        close(Logit(output=key).bind(output, target, samples=3)(output), LOGITS[:, target])


@pytest.mark.parametrize(
    ("output", "score", "message"),
    [
        ({"a": LOGITS, "b": LOGITS}, Logit(), r"returned a dict with the keys \['a', 'b'\]: .* score=Logit\(output"),
        ((LOGITS, LOGITS), RawOutput(), r"returned 2 values: say which to explain, e.g. score=RawOutput\(output=...\)"),
        ({"a": LOGITS}, Logit(output="z"), r"output='z' is not in the model's output \(\['a'\]\)"),
        ((LOGITS,), Logit(output=4), r"output=4 is not in the model's output \(tuple\)"),
        (Output(LOGITS, LOGITS), Logit(output="logit"), r"output='logit' is not in the model's output \(Output\)"),
        (SimpleNamespace(), Logit(output="z"), r"output='z' is not in the model's output \(SimpleNamespace\)"),
        (SimpleNamespace(), Logit(), "output must be a floating-point tensor to be scored, got SimpleNamespace"),
        (LOGITS.long(), Logit(), "output must be a floating-point tensor to be scored, got torch.int64"),
        (
            torch.tensor(1.0),
            Logit(),
            r"output must have one row per sample, \[3, classes\] for 3 of them, got \[\]; a squeeze",
        ),
        (LOGITS[:2], Logit(), r"output must have one row per sample, \[3, classes\] for 3 of them, got \[2, 2\]"),
    ],
)
def test_outputs_that_cannot_be_read_are_refused(output, score, message):
    with pytest.raises(ValueError, match=message):
        score.bind(output, 0, samples=3)


# Bad input


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (3, ValueError, r"target \[3\] is out of range: the model's output has 3 classes, so a target is 0 to 2"),
        (-1, ValueError, r"target \[-1\] is out of range"),
        (torch.tensor([0, 7]), ValueError, r"target \[7\] is out of range"),
        (torch.tensor([0, 1, 2]), ValueError, r"one class index per sample, shape \[2\], got \[3\]"),
        (torch.tensor([[0], [1]]), ValueError, r"one class index per sample, shape \[2\], got \[2, 1\]"),
        (torch.tensor([0.0, 1.0]), ValueError, r"integer class indices, got torch.float32; use target.long\(\)"),
        (torch.tensor([True, False]), ValueError, "integer class indices, got torch.bool"),
        ("label", ValueError, "target must be class indices or 'predicted', got 'label'"),
        (1.0, ValueError, "target must hold integer class indices, got torch.float"),
        (True, ValueError, "target must hold integer class indices, got torch.bool"),
        ([0, 1, 2], ValueError, r"one class index per sample, shape \[2\], got \[3\]"),
        ([[0], [1]], ValueError, r"one class index per sample, shape \[2\], got \[2, 1\]"),
        (torch.tensor(1), ValueError, r"one class index per sample, shape \[2\], got \[\]"),
        ({0: 1}, TypeError, "target must be class indices or 'predicted', got dict"),
        (None, ValueError, "the output has classes, so a target is needed: class indices or 'predicted'"),
    ],
)
def test_targets_that_do_not_fit_are_refused(target, error, message):
    with pytest.raises(error, match=message):
        as_score("logit").bind(torch.zeros(2, 3), target, samples=2)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ("probability", "one column, whose softmax is always 1: use score='sigmoid' .* or score='value'"),
        ("log_probability", "one column, whose softmax is always 1"),
        ("comb_classes", "one column, whose softmax is always 1"),
        ("margin", "score='margin' needs two classes or more"),
    ],
)
def test_softmax_and_margin_refuse_one_column(score, message):
    with pytest.raises(ValueError, match=message):
        as_score(score).bind(torch.zeros(2, 1), 0, samples=2)


@pytest.mark.parametrize("score", ["probability", "log_probability", "comb_classes"])
def test_second_softmax_warns(score):
    with pytest.warns(UserWarning, match="already looks like probabilities: use score='value'"):
        as_score(score).bind(draw(3, 4).softmax(1), 0, samples=3)


@pytest.mark.parametrize(
    ("score", "error", "message"),
    [
        (
            "logits",
            ValueError,
            "score 'logits' is unknown. Did you mean 'logit'.* Known: probability, logit, .*, value",
        ),
        ("propability", ValueError, "Did you mean 'probability'"),
        ("xyz", ValueError, r"score 'xyz' is unknown\. Known"),
        (3, TypeError, "score must be a name, a Score or a function, got int"),
    ],
)
def test_unknown_scores_are_refused(score, error, message):
    with pytest.raises(error, match=message):
        as_score(score)


# Scores of one's own


def test_function_becomes_a_score():
    z, target = draw(3, 2), torch.tensor([1, 0, 1])
    score = as_score(lambda output, target: output.sum(1) * target)
    assert isinstance(score, Score)
    close(score.bind(z, target, samples=3)(z), z.sum(1) * target)
    pair = (z, z + 1)
    second = Custom(output=1, function=lambda output, _: output[:, 0])
    close(second.bind(pair, 0, samples=3)(pair), z[:, 0] + 1)


def test_function_must_return_one_value_per_sample():
    z = draw(3, 2)
    with pytest.raises(ValueError, match=r"Custom must return one value per sample, \[3\], got \[3, 2\]"):
        as_score(lambda output, _: output).bind(z, 0, samples=3)(z)
    with pytest.raises(TypeError, match="function must be callable, got NoneType"):
        Custom(None)
