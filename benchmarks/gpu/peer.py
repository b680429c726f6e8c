"""A peer: transformers' decoder of the same sizes in torch, eager and through `torch.compile`.

`deepseek_v3`, which the text model of `kimi_k25` is, with random weights in bf16; the tower has no
part in what is timed. Its cache is as long as a row needs; the id of the highest logit is chosen on
the device, as ours is.
"""

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Way = Literal["eager", "compiled"]
EXPERTS = "grouped_mm"
"""Of transformers' ways through the experts the fastest; the loop cannot be compiled as a whole."""
_WARM_UPS = 3
"""Calls until `torch.compile` has compiled, recorded and replayed."""
_UNUSED = ("bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype")


class Peer:
    """A decoder with head on a device."""

    def __init__(self, way: Way, sizes: Mapping[str, Any], *, place: str = "cuda") -> None:
        """Draw weights on the device.

        Args:
            way: how it is run.
            sizes: the text config of a checkpoint.
            place: torch's name of the device.
        """
        import torch
        from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

        fields = {name: value for name, value in sizes.items() if name not in _UNUSED}
        self._config, self._place = DeepseekV3Config(**fields), place
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device(place):
                model = DeepseekV3ForCausalLM(self._config).eval()
        finally:
            torch.set_default_dtype(before)
        model.set_experts_implementation(EXPERTS)
        self._way, self._model, self._run = way, model, model
        self._cache: tuple[tuple[int, int], Any] | None = None

    def warm_up(self, work: Callable[[], Any]) -> None:
        """Begin a row: compile for its sizes alone, then run it until nothing is new.

        What earlier rows compiled is forgotten: torch would otherwise compile later ones for sizes
        of any value, and none behind the eighth.
        """
        import torch

        if self._way == "compiled":
            self._cache = None
            torch._dynamo.reset()
            self._run = torch.compile(self._model, mode="reduce-overhead", dynamic=False)
        for _ in range(_WARM_UPS):
            work()

    def decode(self, depth: int, tokens: int, *, batch: int = 1) -> list[float]:
        """Decode random tokens behind `depth` others in some sequences: seconds for each step."""
        import torch

        cache = self._cache_of(batch, depth + tokens)
        seconds = []
        for place in range(depth, depth + tokens):
            ids = torch.randint(self._config.vocab_size, (batch, 1), device=self._place)
            seconds.append(self._step(ids, place, cache))
        return seconds

    def prefill(self, tokens: int) -> float:
        """Run a prompt of random tokens: seconds."""
        import torch

        ids = torch.randint(self._config.vocab_size, (1, tokens), device=self._place)
        return self._step(ids, 0, self._cache_of(1, tokens))

    def _step(self, ids: "torch.Tensor", depth: int, cache: Any) -> float:  # noqa: ANN401  theirs
        import torch

        for layer in cache.layers:
            layer.cumulative_length.fill_(depth)
        self._wait()
        start = perf_counter()
        positions = torch.arange(depth, depth + ids.shape[1], device=self._place)[None]
        with torch.inference_mode():
            logits = self._run(
                input_ids=ids, position_ids=positions, past_key_values=cache, logits_to_keep=1
            ).logits
            logits[:, -1].argmax(-1).tolist()
        return perf_counter() - start

    def _cache_of(self, batch: int, length: int) -> Any:  # noqa: ANN401  theirs
        """Give a cache full of random numbers; the last one is kept."""
        import torch
        from transformers import StaticCache

        key = (batch, length)
        if self._cache is None or self._cache[0] != key:
            self._cache = None
            config = self._config
            cache = StaticCache(config=config, max_cache_len=length)
            widths = (config.kv_lora_rank, config.qk_rope_head_dim)
            kind: dict[str, Any] = {"dtype": torch.bfloat16, "device": self._place}
            empty = [torch.zeros(batch, 1, 1, width, **kind) for width in widths]
            for layer in cache.layers:
                layer.lazy_initialization(*empty)
                layer.keys.normal_()
                layer.values.normal_()
            self._cache = key, cache
        return self._cache[1]

    def _wait(self) -> None:
        import torch

        if self._place != "cpu":
            torch.cuda.synchronize()


def reason_to_leave_out() -> str | None:
    """Say why there is no peer here; None if there is one."""
    try:
        import torch
        import transformers  # noqa: F401  whether it is there
    except ImportError as error:
        return f"{error.name} is not installed"
    return None if torch.cuda.is_available() else f"torch {torch.__version__} has no CUDA here"
