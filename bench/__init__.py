"""The suite: one model, one decoding loop, one clock, and everything that turns its records into tables."""
