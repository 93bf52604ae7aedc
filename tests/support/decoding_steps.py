"""A model that stands still at a step."""

from concurrent.futures import Future

from transformers import PreTrainedModel


class Steps:
    """Counts a model's decoding steps, and stands still at one of them until it is let go."""

    def __init__(self, model: PreTrainedModel, at: int) -> None:
        self.count, self.reached, self._go = 0, Future[None](), Future[None]()
        self._at = at
        self._hook = model.get_output_embeddings().register_forward_hook(self._step)

    def _step(self, *_: object) -> None:
        self.count += 1
        if self.count == self._at:
            self.reached.set_result(None)
            self._go.result(timeout=60)

    def go_on(self) -> None:
        self._go.set_result(None)

    def remove(self) -> None:
        self._hook.remove()
