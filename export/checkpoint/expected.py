"""Every tensor of a Kimi-VL checkpoint by name and shape, derived from its sizes alone.

Does not know: files, dtypes, values. Rotation tables are buffers and are not in a checkpoint.

Source: the release checkpoints; `modeling_kimi_vl.py` (MoonVitPretrainedModel,
KimiVLMultiModalProjector, DeepseekV3ForCausalLM).
"""

from runtime.config import DecoderConfig, KimiVLConfig, VisionConfig

Shapes = dict[str, tuple[int, ...]]

IGNORED_SUFFIX = "rotary_emb.inv_freq"
"""The one buffer that old savers wrote beside the parameters; it follows from the config."""


def expected_tensors(config: KimiVLConfig) -> Shapes:
    """List all tensors in release order: vision tower, projector, decoder.

    Returns:
        Shape by name. Matrices are (out, in); weights of norms and all biases have one axis.
    """
    return {
        **_vision_tensors(config.vision),
        **_projector_tensors(config.vision, config.decoder.width),
        **_decoder_tensors(config.decoder),
    }


def decoder_layer_prefix(layer: int) -> str:
    """Give what the names of one decoder layer's tensors begin with."""
    return f"language_model.model.layers.{layer}."


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns)}


def _biased_linear(name: str, rows: int, columns: int) -> Shapes:
    return {**_linear(name, rows, columns), f"{name}.bias": (rows,)}


def _rms_norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,)}


def _layer_norm(name: str, width: int) -> Shapes:
    return {**_rms_norm(name, width), f"{name}.bias": (width,)}


def _mlp(name: str, width: int, inner: int) -> Shapes:
    return {
        **_linear(f"{name}.gate_proj", inner, width),
        **_linear(f"{name}.up_proj", inner, width),
        **_linear(f"{name}.down_proj", width, inner),
    }


def _vision_tensors(config: VisionConfig) -> Shapes:
    tower, width = "vision_tower", config.width
    shapes: Shapes = {
        f"{tower}.patch_embed.proj.weight": (width, 3, config.patch_size, config.patch_size),
        f"{tower}.patch_embed.proj.bias": (width,),
        f"{tower}.patch_embed.pos_emb.weight": (config.table_height, config.table_width, width),
    }
    for layer in range(config.num_layers):
        block = f"{tower}.encoder.blocks.{layer}"
        shapes |= _layer_norm(f"{block}.norm0", width)
        shapes |= _layer_norm(f"{block}.norm1", width)
        shapes |= _biased_linear(f"{block}.wqkv", 3 * width, width)
        shapes |= _biased_linear(f"{block}.wo", width, width)
        shapes |= _biased_linear(f"{block}.mlp.fc0", config.mlp_width, width)
        shapes |= _biased_linear(f"{block}.mlp.fc1", width, config.mlp_width)
    return shapes | _layer_norm(f"{tower}.encoder.final_layernorm", width)


def _projector_tensors(vision: VisionConfig, decoder_width: int) -> Shapes:
    projector = "multi_modal_projector"
    return {
        **_layer_norm(f"{projector}.pre_norm", vision.width),
        **_biased_linear(f"{projector}.linear_1", vision.merged_width, vision.merged_width),
        **_biased_linear(f"{projector}.linear_2", decoder_width, vision.merged_width),
    }


def _decoder_tensors(config: DecoderConfig) -> Shapes:
    model, width = "language_model.model", config.width
    shapes = _linear(f"{model}.embed_tokens", config.vocab_size, width)
    for layer in range(config.num_layers):
        prefix = decoder_layer_prefix(layer)
        shapes |= _attention_tensors(f"{prefix}self_attn", config)
        if config.is_dense(layer):
            shapes |= _mlp(f"{prefix}mlp", width, config.dense_width)
        else:
            shapes |= _moe_tensors(f"{prefix}mlp", config)
        shapes |= _rms_norm(f"{prefix}input_layernorm", width)
        shapes |= _rms_norm(f"{prefix}post_attention_layernorm", width)
    shapes |= _rms_norm(f"{model}.norm", width)
    return shapes | _linear("language_model.lm_head", config.vocab_size, width)


def _attention_tensors(name: str, config: DecoderConfig) -> Shapes:
    heads, width, rank = config.num_heads, config.width, config.latent_rank
    return {
        **_linear(f"{name}.q_proj", heads * config.query_size, width),
        **_linear(f"{name}.kv_a_proj_with_mqa", config.latent_width, width),
        **_rms_norm(f"{name}.kv_a_layernorm", rank),
        **_linear(f"{name}.kv_b_proj", heads * (config.nope_size + config.value_size), rank),
        **_linear(f"{name}.o_proj", width, heads * config.value_size),
    }


def _moe_tensors(name: str, config: DecoderConfig) -> Shapes:
    shapes = _linear(f"{name}.gate", config.num_experts, config.width)
    shapes[f"{name}.gate.e_score_correction_bias"] = (config.num_experts,)
    for expert in range(config.num_experts):
        shapes |= _mlp(f"{name}.experts.{expert}", config.width, config.expert_width)
    return shapes | _mlp(f"{name}.shared_experts", config.width, config.shared_width)
