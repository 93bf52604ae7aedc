"""Consensus of annotators: the majority, and Dawid and Skene's as crowd-kit has it."""

import numpy as np
import pytest

from llm_blender_ray.pipelines.quality.consensus import Label, dawid_skene, majority

# Labels of 30 items by four annotators, one letter each (l, r, t; a dot: none), made with errors of 10%, 20%, 25%
# and 90%; and what crowd-kit 1.4.2 makes of them: DawidSkene(n_iter=2000, tol=1e-13).fit(labels).
GIVEN = {
    "ann": "llrrl.rlrtlr.tlrttt.rtlrll.ltl",
    "ben": "rllr.lrlrtl.tlrrtl.trtrrl.rrtr",
    "cat": "rtr.llllrt.tllrrt.llrllr.lrrtl",
    "dan": "rr.tlrltl.ttltlt.ttrtlt.lttltt",
}
CROWD_KIT = "rlrrllrlrtlrtlrrtlltrtlrllrrtl"
CROWD_KIT_CHANCES = {1: (0.975373, 0.024627, 0), 4: (0.768651, 0.231349, 0), 18: (0.603162, 0, 0.396838),
                     22: (0.659655, 0.340345, 0), 24: (0.834128, 0.165872, 0)}  # fmt: skip
CROWD_KIT_CONFUSION = {  # of items that are "left"
    "ann": (0.721389, 0, 0.278611),
    "ben": (0.835965, 0.164035, 0),
    "cat": (0.870861, 0, 0.129139),
    "dan": (0.155185, 0.189791, 0.655024),
}
CROWD_KIT_PRIOR = (0.344273, 0.442466, 0.213261)
VALUES = {"l": "left", "r": "right", "t": "tie"}


def labels() -> list[Label]:
    return [
        Label(item, name, VALUES[said])
        for name, all_said in GIVEN.items()
        for item, said in enumerate(all_said)
        if said != "."
    ]


def test_dawid_skene_is_crowd_kits() -> None:
    found = dawid_skene(labels())
    assert (found.values, found.annotators) == (["left", "right", "tie"], ["ann", "ben", "cat", "dan"])
    assert "".join(label[0] for _, label in sorted(found.labels().items())) == CROWD_KIT
    chances = {item: found.chances[found.items.index(item)] for item in CROWD_KIT_CHANCES}
    for item, expected in CROWD_KIT_CHANCES.items():
        np.testing.assert_allclose(chances[item], expected, atol=0.006)
    for at, name in enumerate(found.annotators):
        np.testing.assert_allclose(found.confusion[at, 0], CROWD_KIT_CONFUSION[name], atol=0.006)
    np.testing.assert_allclose(found.prior, CROWD_KIT_PRIOR, atol=0.006)


def test_the_worst_annotator_counts_least() -> None:
    found = dawid_skene(labels()).accuracy()
    assert min(found, key=found.__getitem__) == "dan"


def test_one_who_is_always_wrong_is_as_good_as_one_who_is_always_right() -> None:
    said = [
        Label(item, name, "lr"[(item + (name == "liar")) % 2]) for item in range(20) for name in ("a", "b", "liar")
    ]
    found = dawid_skene(said)
    assert found.labels() == {item: "lr"[item % 2] for item in range(20)}
    assert found.accuracy()["liar"] == pytest.approx(0, abs=1e-6)


def test_majority_of_a_draw_is_none() -> None:
    assert majority([Label(1, "a", "left"), Label(1, "b", "right"), Label(2, "a", "tie")]) == {1: None, 2: "tie"}
