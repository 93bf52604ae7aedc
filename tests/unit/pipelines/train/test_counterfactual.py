"""Counterfactual rows: what is swapped, that the candidates still lead to the reference, and what stays."""

import random
from pathlib import Path
from typing import Any

import pytest
from training_rows import short, write

from llm_blender_ray.actors.errors import BlendError
from llm_blender_ray.actors.records import Prompt
from llm_blender_ray.configs.training import Counterfactuals, FuserTraining
from llm_blender_ray.pipelines.train.counterfactual import counterfactual_row, swap_values
from llm_blender_ray.pipelines.train.fuser import prepare_fusions
from llm_blender_ray.pipelines.train.prepare import Preparation
from llm_blender_ray.pipelines.train.rows import TrainingRow

LONG = "It lies in the middle of the country and many people visit it every year because of its old {}."


def row_of(reference: str, *texts: str, prompt: str = "Which city?", name: str = "1") -> TrainingRow:
    return TrainingRow(
        prompt=Prompt(name, instruction=prompt),
        texts=texts,
        metrics=tuple({"q": float(-i)} for i in range(len(texts))),
        reference=reference,
        ranking=None,
    )


def swapped(row: TrainingRow, share: float = 1.0) -> tuple[str | None, ...]:
    found = swap_values(row, share, random.Random(0))
    assert (found.prompt, found.metrics, found.ranking) == (row.prompt, row.metrics, row.ranking)
    return (found.reference, *found.texts)


class TestValues:
    def test_a_value_and_a_candidates_other_one_change_places_everywhere(self) -> None:
        row = row_of("1) Paris 2) went", "1) Paris 2) went", "1) Rome 2) went", "Paris, not Rome", "none")
        assert swapped(row) == ("1) Rome 2) went", "1) Rome 2) went", "1) Paris 2) went", "Rome, not Paris", "none")

    def test_agreement_and_differences_of_the_texts_stay(self) -> None:
        rng = random.Random(1)
        words = ["Rome", "Oslo", "Lima", "Cairo", "Paris"]
        changed = 0
        for _ in range(200):
            row = row_of(*(f"from {rng.choice(words)} to {rng.choice(words)} by train" for _ in range(5)))
            before, after = (row.reference, *row.texts), swapped(row)
            changed += before != after
            pairs = [(i, j) for i in range(5) for j in range(i)]
            assert [before[i] == before[j] for i, j in pairs] == [after[i] == after[j] for i, j in pairs]
            back = swap_values(row, 0.0, random.Random(0))
            assert back is row
        assert changed > 50

    def test_several_words_are_one_value(self) -> None:
        row = row_of("in New York now", "in New York now", "in Los Angeles now")
        assert swapped(row) == ("in Los Angeles now", "in Los Angeles now", "in New York now")

    @pytest.mark.parametrize(
        ("case", "row"),
        [
            ("in the prompt", row_of("in Paris", "in Paris", "in Rome", prompt="Paris or Milan?")),
            ("the other one in the prompt", row_of("in Paris", "in Paris", "in Rome", prompt="Rome or Milan?")),
            ("no candidate has it", row_of("in Paris", "in Rome", "in Oslo")),
            ("all agree", row_of("in Paris", "in Paris", "in Paris")),
            ("another kind", row_of("in Paris", "in Paris", "in 1889")),
            ("case alone", row_of("the Moon", "the Moon", "the moon")),
            ("another number of words", row_of("in Paris", "in Paris", "in New York")),
            ("wording of a long text", row_of(LONG.format("town"), LONG.format("town"), LONG.format("walls"))),
            (
                "a capital at the beginning of a sentence",
                row_of(*(f"{word} towns. {LONG.format('town')} in many old" for word in ("In", "In", "Many"))),
            ),
            ("numbers of a list", row_of("1. a\n2. b", "1. a\n2. b", "1. a\n3. b")),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_is_no_value_stays(self, case: str, row: TrainingRow) -> None:
        assert swap_values(row, 1.0, random.Random(0)) is row

    @pytest.mark.parametrize(("one", "other"), [("Prague", "Vienna"), ("1889", "1887")])
    def test_names_and_numbers_of_a_long_text_are_values(self, one: str, other: str) -> None:
        texts = [LONG.format(f"square, {word}") for word in (one, one, other)]
        assert swapped(row_of(*texts)) == tuple(LONG.format(f"square, {word}") for word in (other, other, one))

    def test_the_rest_of_the_text_stays_to_the_character(self) -> None:
        row = row_of(" *Paris*,\n\tof course! ", " *Paris*,\n\tof course! ", "«Rome», of course…")
        assert swapped(row) == (" *Rome*,\n\tof course! ", " *Rome*,\n\tof course! ", "«Paris», of course…")


class TestDraws:
    def test_the_seed_the_id_and_the_texts_decide(self) -> None:
        rows = [row_of("in Paris", "in Paris", "in Rome", name=str(i)) for i in range(400)]
        of_seed = [
            [counterfactual_row(row, Counterfactuals(seed=seed)) is row for row in rows] for seed in (0, 0, 1)
        ]
        assert of_seed[0] == of_seed[1] != of_seed[2]
        assert 150 < sum(of_seed[0]) < 250

    def test_each_value_is_drawn_by_itself(self) -> None:
        texts = ("1) Paris 2) went", "1) Rome 2) gone")
        found = {
            counterfactual_row(row_of(texts[0], *texts, name=str(i)), Counterfactuals()).reference
            for i in range(50)
        }
        assert found == {"1) Paris 2) went", "1) Rome 2) went", "1) Paris 2) gone", "1) Rome 2) gone"}


class TestPreparation:
    def settings(self, folder: Path, rows: list[dict[str, Any]], **changes: Any) -> FuserTraining:
        uri = write(folder / "rows.jsonl", rows)
        base = {"model": "m", "train": uri, "heldout": uri, "output": str(folder / "out"), "optimization": short()}
        return FuserTraining.model_validate(base | changes)

    def test_rows_to_learn_from_change_and_held_out_ones_do_not(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        candidates = [{"text": "in Paris"}, {"text": "in Rome"}]
        row = {"id": "1", "instruction": "Where?", "output": "in Paris", "candidates": candidates}
        rows = [row, row | {"id": "2", "candidates": candidates[:1]}]
        config = self.settings(tmp_path, rows, counterfactual={"share": 1.0})
        data = prepare_fusions(config, Preparation(config.output))
        assert data.heldout is not None
        assert [(one.reference, one.texts) for one in data.train.rows()] == [
            ("in Rome", ("in Rome", "in Paris")),
            ("in Paris", ("in Paris",)),
        ]
        assert [one.reference for one in data.heldout.rows()] == ["in Paris", "in Paris"]
        assert "fuser: values to swap in 1 of the first 2 rows" in capsys.readouterr().err
        plain = prepare_fusions(config.model_copy(update={"counterfactual": None}), Preparation(config.output))
        assert [one.reference for one in plain.train.rows()] == ["in Paris", "in Paris"]
        assert plain.heldout == data.heldout

    def test_rows_without_any_value_are_one_clear_line(self, tmp_path: Path) -> None:
        row = {"instruction": "Where?", "output": "in Paris", "candidates": [{"text": "in Paris"}]}
        config = self.settings(tmp_path, [row], counterfactual={})
        with pytest.raises(BlendError, match="counterfactual: no value to swap in the first 1 rows"):
            prepare_fusions(config, Preparation(config.output))
