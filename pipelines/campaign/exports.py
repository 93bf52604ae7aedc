"""Votes of a campaign as files: rows with judgements, TRL preferences, the arena's battles, Argilla records.

Gold items are in none of them: they are there to know the annotators.
"""

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from llm_blender_ray.actors.records import Message, read_prompt
from llm_blender_ray.pipelines.campaign.records import CampaignError, CastVote
from llm_blender_ray.pipelines.campaign.store import CampaignStore
from llm_blender_ray.pipelines.quality.consensus import Label, majority
from llm_blender_ray.pipelines.quality.judgements import ARENA_WINNERS, SIGNS
from llm_blender_ray.pipelines.quality.votes import side_text
from llm_blender_ray.pipelines.rows.formats import kind
from llm_blender_ray.pipelines.rows.preferences import Preference
from llm_blender_ray.pipelines.rows.schema import to_json
from llm_blender_ray.pipelines.rows.uris import replacing, translate_errors

Record = dict[str, Any]
_WINNERS = {preferred: winner for winner, preferred in reversed(ARENA_WINNERS.items())} | {"both_good": "tie"}
ARGILLA_QUESTION = "preferred"


def judged_rows(store: CampaignStore) -> Iterator[Record]:
    """Rows of the campaign with their votes in the column `judgements`, after judgements that a row came with."""
    by_prompt: defaultdict[int, list[CastVote]] = defaultdict(list)
    for vote in _counted(store):
        by_prompt[vote.prompt].append(vote)
    gold = store.gold_prompts()
    for prompt, row in enumerate(store.rows()):
        if prompt in gold:
            continue
        given = row.get("judgements")
        new = [judgement_of(vote) for vote in by_prompt[prompt]]
        yield {**row, "judgements": [*(given if isinstance(given, list) else ()), *new]} if new or given else row


def judgement_of(vote: CastVote) -> Record:
    """The vote as a judgement of its row (`quality.judgements.Judgement`)."""
    left, right = vote.shown
    judgement: Record = {"judge": vote.annotator, "person": True, "left": left, "right": right}
    judgement["preferred"] = vote.preferred
    return judgement | ({"reply": vote.comment} if vote.comment else {}) | {"at": vote.at}


def preference_records(store: CampaignStore) -> Iterator[Mapping[str, Any]]:
    """A TRL preference for each item on which one answer has more votes; a tie counts as half a vote for either.

    `score_chosen` and `score_rejected` are shares of the votes; `votes` is how many there are.
    """
    rows, items = store.rows(), defaultdict(list)
    for vote in _counted(store):
        items[vote.item].append(vote)
    for votes in items.values():
        share = sum(1 + SIGNS[vote.unswapped] for vote in votes) / 2 / len(votes)
        if share == 0.5:
            continue
        row, chosen = rows[votes[0].prompt], 0 if share > 0.5 else 1
        texts = [side_text(row, side) or "" for side in votes[0].sides]
        score = max(share, 1 - share)
        prompt = read_prompt(row)
        yield {
            **Preference(
                id=prompt.id,
                prompt=prompt.chat(),
                chosen=[Message(role="assistant", content=texts[chosen])],
                rejected=[Message(role="assistant", content=texts[1 - chosen])],
                score_chosen=score,
                score_rejected=1 - score,
                chosen_model=votes[0].names[chosen],
                rejected_model=votes[0].names[1 - chosen],
            ),
            "votes": len(votes),
        }


def arena_records(store: CampaignStore) -> Iterator[Record]:
    """A battle for each vote, in the columns of lmsys/chatbot_arena_conversations, with the annotator as judge.

    A plain tie and `both_good` are the same there.
    """
    rows = store.rows()
    for vote in _counted(store):
        row = rows[vote.prompt]
        prompt = read_prompt(row)
        names = vote.names[::-1] if vote.swapped else vote.names
        chats = [
            [*prompt.chat(), Message(role="assistant", content=side_text(row, side) or "")] for side in vote.shown
        ]
        yield {
            "question_id": prompt.id,
            "model_a": names[0],
            "model_b": names[1],
            "winner": _WINNERS[vote.preferred],
            "judge": vote.annotator,
            "conversation_a": chats[0],
            "conversation_b": chats[1],
            "turn": sum(turn["role"] == "user" for turn in chats[0]),
            "anony": True,
            "tstamp": vote.at,
        }


def argilla_records(store: CampaignStore) -> Iterator[Record]:
    """A record for each item with a vote, as Argilla 2's `Dataset.records.from_json` reads a list of them.

    Fields are `prompt`, `response_a` and `response_b`. Each vote is a response to the label question `preferred`,
    whose labels are `a`, `b`, `tie`, `both_good` and `both_bad`; the most frequent label is the suggestion, with
    its share as score. Argilla has ids of its own for users: `user_id` is `annotator_uuid` of the name; the names
    are in the metadata, in the order of the responses.
    """
    rows, items = store.rows(), defaultdict(list)
    for vote in _counted(store):
        items[vote.item].append(vote)
    for item, votes in items.items():
        row = rows[votes[0].prompt]
        prompt = read_prompt(row)
        left, right = (side_text(row, side) or "" for side in votes[0].sides)
        labels = [{"left": "a", "right": "b"}.get(vote.unswapped, vote.unswapped) for vote in votes]
        label = majority([Label(item, str(at), one) for at, one in enumerate(labels)])[item]
        suggestion = (
            {"value": label, "score": labels.count(label) / len(labels), "agent": "majority"} if label else None
        )
        yield {
            "id": f"{prompt.id}/{item}",
            "fields": {"prompt": "\n".join(filter(None, prompt.texts())), "response_a": left, "response_b": right},
            "metadata": {
                "model_a": votes[0].names[0],
                "model_b": votes[0].names[1],
                "annotators": [vote.annotator for vote in votes],
            },
            "suggestions": {ARGILLA_QUESTION: suggestion} if suggestion else {},
            "responses": {
                ARGILLA_QUESTION: [
                    {"value": one, "user_id": str(annotator_uuid(vote.annotator))}
                    for one, vote in zip(labels, votes, strict=True)
                ]
            },
            "vectors": {},
        }


def annotator_uuid(name: str) -> uuid.UUID:
    """Id of an annotator where an id has to be a UUID: the same for the same name."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"blend:annotator:{name}")


EXPORTS: dict[str, Callable[[CampaignStore], Iterable[Mapping[str, Any]]]] = {
    "rows": judged_rows,
    "trl": preference_records,
    "arena": arena_records,
    "argilla": argilla_records,
}


def export_campaign(folder: str, shape: str, output: str) -> int:
    """Write the votes of a campaign.

    Args:
        folder: The campaign's.
        shape: A name in `EXPORTS`.
        output: File: JSON Lines (`.jsonl`), or a JSON list (`.json`).

    Returns:
        How many records were written.

    Raises:
        CampaignError: There is no campaign, or the file's ending is another one.
        BlendError: The file can't be written.
    """
    ending = kind(output)
    if ending not in (".jsonl", ".json"):
        raise CampaignError(f"--output {output}: expected a file that ends in .jsonl or .json")
    lines = [to_json(record) for record in EXPORTS[shape](CampaignStore(folder))]
    text = "".join(f"{line}\n" for line in lines) if ending == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]\n"
    with translate_errors(output, "write it"), replacing(output) as file:
        file.write(text.encode())
    return len(lines)


def _counted(store: CampaignStore) -> Iterator[CastVote]:
    return (vote for vote in store.votes() if vote.gold is None)
