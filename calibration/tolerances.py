"""How far two implementations of the same thing may be apart, with the reason for each bound.

All are max|a - b| / max|b| over a tensor unless they say otherwise.
"""

GRAPH_FP32 = 1e-4
"""A graph against torch, both in fp32: other orders of summation; seen: below 1e-5.

Weights stored in 16 bits and computed in fp32 are held to the same bound: widening is exact.
"""
GRAPH_ROUNDED = 5e-2
"""A graph that rounds activations, against torch: another order of summation moves a value over the
border between two codes, by one step; the blocks behind see it; seen: 6e-3 in three blocks.

Graphs of target `cpu` that round by themselves are held to it beside a module that rounds as they
do (`own_rounding.py`); seen: 5e-3, and 1.9e-2 behind the 27 blocks of a tower of random weights.
Beside one that does not, a layer is off by 0.9e-2 to 2.1e-2, but by 0.15 to 0.21 at a token whose
router chooses another expert: 1 of 32 in a layer of 2048 channels and 64 random experts. Such a
bound would hide mistakes. The cost is in the price."""
ON_DEVICE = 5e-2
"""Features and logits of plans, computed in 16 bits, against the CPU's in fp32: each of some dozen
layers rounds hidden states and cache to 8 (bf16) or 11 bits; equal routing. Not tried on a card."""
WHOLE_FP32 = 1e-4
"""Logits of the whole model in fp32 against another implementation; seen: 3e-6."""
STORED_FP16 = 4e-3
"""Logits with fp16 weights against fp32 ones, equal routing: a weight moves by up to 2^-11."""
STORED_BF16 = 3e-2
"""Logits with bf16 weights against fp32 ones, equal routing: a weight moves by up to 2^-8."""
SAME_GRAPH = 1e-5
"""The same graph on the same tokens in another order of work (chunks, slots).

Only the shapes of matrix products differ, hence their summation order.
"""
EXACT = 0.0
"""The same numbers, moved but not computed with."""
