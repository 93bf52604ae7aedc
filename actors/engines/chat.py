"""From chat messages to token ids, the same way for every engine that holds a tokenizer.

A prompt is rendered and tokenised here, not by the engine, so that a model answers alike wherever it runs and
a prompt which doesn't fit is refused in the same words.
"""

from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from actors.engines.reasoning_formats import opened
from actors.errors import ModelLoadError, PromptError, TooLongError, one_line
from actors.records import Message
from configs.schema import Sampling


def encode(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of the chat, up to where the answer begins.

    A tokenizer without a chat template belongs to a plain language model: it gets the contents, a line each.
    Raises PromptError when the template refuses the chat.
    """
    if tokenizer.chat_template is None:
        text = "\n".join(message["content"] for message in messages)
        return tokenizer(text, verbose=False)["input_ids"]
    text = render(tokenizer, messages)
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # the template wrote them


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool = True
) -> str:
    """The chat as the model's own template writes it.

    Some templates have no place for a system message; they raise, or drop it without a word. Then it goes in
    front of the first user message, where the makers of such models put it. Raises PromptError when the template
    refuses the chat.
    """

    def rendered(messages: list[Message]) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)

    system = [content for m in messages if m["role"] == "system" and (content := m["content"].strip())]
    try:
        text = rendered(list(messages))
        if all(content in text for content in system):
            return text
    except TemplateError as error:
        if not system:
            raise _refused(error) from error
    try:
        return rendered(_folded(messages))
    except TemplateError as error:
        raise _refused(error) from error


def opens_reasoning(tokenizer: PreTrainedTokenizerBase) -> str:
    """The mark of reasoning that the model's own template writes in front of answers; "" for none."""
    if tokenizer.chat_template is None:
        return ""
    try:
        return opened(render(tokenizer, [Message(role="user", content="?")]))
    except Exception:  # a template is a program of the model's maker; whom it refuses is told when a chat comes
        return ""


def _folded(messages: Sequence[Message]) -> list[Message]:
    """The chat without system messages: their text stands in front of the first user message."""
    system = [m["content"] for m in messages if m["role"] == "system"]
    turns = [m for m in messages if m["role"] != "system"]
    first = next((i for i, m in enumerate(turns) if m["role"] == "user"), None)
    if first is None:
        return [Message(role="user", content="\n\n".join(system)), *turns]
    turns[first] = Message(role="user", content="\n\n".join([*system, turns[first]["content"]]))
    return turns


def _refused(error: TemplateError) -> PromptError:
    return PromptError(f"the model's chat template refuses this chat: {one_line(error)}")


def check_room(sampling: Sampling, context: int | None) -> None:
    """Raise ModelLoadError when answers of `max_tokens` leave no prompt any room in `context` tokens."""
    if context is not None and sampling.max_tokens >= context:
        raise ModelLoadError(
            f"sampling.max_tokens ({sampling.max_tokens}) leaves no room for a prompt in the model's "
            f"context of {context} tokens; set a smaller one"
        )


def check_fits(
    prompt_tokens: int, answer_tokens: int, context: int | None, max_prompt_tokens: int | None = None
) -> None:
    """Raise PromptError for an empty prompt; TooLongError for one of more than `max_prompt_tokens`, and when it and
    the longest answer exceed `context`."""
    if not prompt_tokens:
        raise PromptError("the prompt has no tokens")
    if max_prompt_tokens is not None and prompt_tokens > max_prompt_tokens:
        raise TooLongError(f"the prompt's {prompt_tokens} tokens exceed max_prompt_tokens ({max_prompt_tokens})")
    if context is not None and prompt_tokens + answer_tokens > context:
        answer = f" and max_tokens ({answer_tokens})" if answer_tokens else ""
        raise TooLongError(
            f"the prompt's {prompt_tokens} tokens{answer} exceed the model's context of {context} tokens"
        )
