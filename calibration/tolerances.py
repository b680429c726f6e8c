"""How far two implementations of the same thing may be apart, with the reason for each bound.

All are max|a - b| / max|b| over a tensor unless they say otherwise.
"""

GRAPH_FP32 = 1e-4
"""A graph against torch, both in fp32: other orders of summation; seen: below 1e-5.

Weights stored in 16 bits and computed in fp32 are held to the same bound: widening is exact.
"""
GRAPH_ROUNDED = 5e-2
"""A graph that rounds activations, against torch: another order of summation moves a value over the
border between two codes, by one step; the blocks behind see it; seen: 6e-3 in three blocks."""
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
