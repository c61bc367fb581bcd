"""Parallel Token Prediction (arXiv 2512.21323): noise embedding, gated adapter, decoding, budget, losses."""
