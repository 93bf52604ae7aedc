"""The linear ranker on words: what it learns, and what it ignores."""

from pathlib import Path

from training_rows import write

from llm_blender_ray.configs.training import PairSampling
from llm_blender_ray.pipelines.bench.bag_of_words import train_bag_of_words
from llm_blender_ray.pipelines.train.pairs import scored_pairs
from llm_blender_ray.pipelines.train.rows import read_training_rows


def test_words_of_the_better_answers_have_higher_weights(tmp_path: Path) -> None:
    rows = [
        {
            "instruction": f"Question {i}?",
            "candidates": [
                {"text": f"{word} it is, {i}.", "scores": {"q": score}}
                for word, score in (("Yes", 1.0), ("No", 0.0))
            ],
        }
        for i in range(8)
    ]
    read = read_training_rows(write(tmp_path / "rows.jsonl", rows))
    bag = train_bag_of_words(read, list(scored_pairs(read, ["q"], PairSampling(), seed=0)))
    assert bag.score("yes") > bag.score("no")
    assert bag.score("it, yes is.") == bag.score("Yes is it,.")  # no order, no case
    assert bag.score("unknown") == bag.score("others")  # of as many words
    assert set(bag.vocabulary) == {"yes", "no", "it", "is", ",", "."}  # a number occurs too rarely
