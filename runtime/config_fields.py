"""Which fields a `config.json` may have, and a reader that collects every problem.

A field is *honoured* (read into a dataclass), *fixed* (only one value is implemented; another one
is refused), or *inert* (it cannot change what the model computes). Anything else is refused by
name: a field nobody looked at is how a model becomes silently wrong.
"""

from collections.abc import Iterable, Mapping
from typing import Any

TOP_FIELDS = frozenset(
    {"model_type", "vision_config", "text_config", "media_placeholder_token_id"}
    | {"tie_word_embeddings", "vocab_size"}
)
VISION_FIELDS = frozenset(
    {
        "patch_size",
        "num_attention_heads",
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "init_pos_emb_height",
        "init_pos_emb_width",
    }
)
FIXED_VISION_VALUES: dict[str, Any] = {"model_type": "moonvit", "merge_kernel_size": [2, 2]}
TEXT_FIELDS = frozenset(
    {
        "vocab_size",
        "max_position_embeddings",
        "hidden_size",
        "intermediate_size",
        "moe_intermediate_size",
        "num_hidden_layers",
        "first_k_dense_replace",
        "num_attention_heads",
        "num_key_value_heads",
        "n_routed_experts",
        "num_experts_per_tok",
        "n_shared_experts",
        "routed_scaling_factor",
        "norm_topk_prob",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "rope_theta",
        "rms_norm_eps",
        "scoring_func",
        "topk_method",
    }
)
FIXED_TEXT_VALUES: dict[str, Any] = {
    "q_lora_rank": None,
    "rope_scaling": None,
    "n_group": 1,
    "topk_group": 1,
    "moe_layer_freq": 1,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "num_nextn_predict_layers": 0,
    "rope_interleave": True,
}
INERT_TEXT_FIELDS = frozenset(
    {"ep_size", "aux_loss_alpha", "seq_aux", "pretraining_tp", "initializer_range", "use_cache"}
    | {"attention_dropout", "num_key_value_groups", "max_window_layers"}
)
# What `PretrainedConfig` of transformers writes into any file, and training options.
_PRETRAINED_CONFIG = (
    "_attn_implementation _attn_implementation_autoset _name_or_path add_cross_attention "
    "architectures auto_map bad_words_ids begin_suppress_tokens bos_token_id "
    "chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id "
    "diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size "
    "eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id "
    "forced_eos_token_id id2label ignore_index is_decoder is_encoder_decoder label2id "
    "length_penalty max_length min_length model_type no_repeat_ngram_size num_beam_groups "
    "num_beams num_return_sequences output_attentions output_hidden_states output_scores "
    "pad_token_id prefix problem_type pruned_heads remove_invalid_values repetition_penalty "
    "return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params "
    "temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype "
    "torchscript transformers_version typical_p use_bfloat16 use_cache vocab_size "
)
INERT_FIELDS = frozenset(_PRETRAINED_CONFIG.split())
_MOST = {
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "moe_intermediate_size": 1 << 20,
    "num_hidden_layers": 1000,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "n_routed_experts": 4096,
    "n_shared_experts": 256,
    "kv_lora_rank": 1 << 17,
    "qk_nope_head_dim": 1 << 14,
    "qk_rope_head_dim": 1 << 14,
    "v_head_dim": 1 << 14,
    "init_pos_emb_height": 4096,
    "init_pos_emb_width": 4096,
    "patch_size": 1024,
}
"""The largest sizes that are believed, far above any model of the family: what is listed and
allocated follows from them, and a damaged file must not take the machine's memory."""
_MOST_OF_OTHERS = (1 << 31) - 1
_LARGEST_NUMBER = 3.4e38
"""Of fp32."""
MOST_EXPERTS = 100_000
"""Of all layers together."""


class Reader:
    """Read typed fields of one JSON object; problems gather in a list shared with its children."""

    def __init__(self, fields: Mapping[str, Any], *, prefix: str) -> None:
        """Wrap `fields`; `prefix` is written before every field name in a problem."""
        self._fields = fields
        self._prefix = prefix
        self._children: dict[str, Reader] = {}
        self.problems: list[str] = []

    def child(self, name: str) -> "Reader":
        """Return the reader of a nested object, the same one at every call."""
        if name not in self._children:
            value = self._fields.get(name)
            if not isinstance(value, dict):
                self.problem(f"{name} is {'missing' if value is None else 'not an object'}")
                value = {}
            reader = Reader(value, prefix=f"{self._prefix}{name}.")
            reader.problems = self.problems
            self._children[name] = reader
        return self._children[name]

    def problem(self, text: str) -> None:
        """Note one problem."""
        self.problems.append(f"{self._prefix}{text}")

    def integer(self, name: str, *, default: int | None = None, minimum: int = 1) -> int:
        """Return an integer field of at least `minimum`, and of no size beyond belief."""
        value = self._fields.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            self.problem(f"{name}: expected an integer of at least {minimum}, {_found(value)}")
            return max(minimum, 1)
        most = _MOST.get(name, _MOST_OF_OTHERS)
        if value > most:
            self.problem(f"{name}: at most {most} is believed, {_found(value)}")
            return max(minimum, 1)
        return value

    def number(self, name: str) -> float:
        """Return a positive number."""
        value = self._fields.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < _LARGEST_NUMBER:  # type: ignore[operator]  # checked left
            self.problem(f"{name}: expected a positive number, {_found(value)}")
            return 1.0
        return float(value)  # type: ignore[arg-type]  # checked above

    def boolean(self, name: str) -> bool:
        """Return a true or false field."""
        value = self._fields.get(name)
        if not isinstance(value, bool):
            self.problem(f"{name}: expected true or false, {_found(value)}")
            return False
        return value

    def ids(self, name: str) -> list[int]:
        """Return a token id, a list of them, or nothing."""
        value = self._fields.get(name)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(item, bool) or not isinstance(item, int) for item in values):
            self.problem(f"{name}: expected a token id or a list of them, {_found(value)}")
            return []
        return values

    def expect(self, name: str, wanted: object) -> None:
        """Refuse every value but one, and a missing field."""
        if self._fields.get(name) != wanted:
            self.problem(
                f"{name}: only {wanted!r} is implemented, {_found(self._fields.get(name))}"
            )

    def expect_if_present(self, name: str, wanted: object) -> None:
        """Refuse every value but one; a missing field means that value."""
        if name in self._fields:
            self.expect(name, wanted)

    def refuse_unknown(self, known: Iterable[str]) -> None:
        """Note each field that is not in `known`."""
        for name in sorted(self._fields.keys() - set(known)):
            self.problem(f"{name}: unknown field ({self._fields[name]!r}); it may change the model")


def _found(value: object) -> str:
    return "which is missing" if value is None else f"found {value!r}"
