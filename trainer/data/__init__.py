"""Data loading: snapshot → selected clips → sampler → read, augmented and decoded clips → batches.

Streaming of tars without tables goes the same way, without selection and sampler."""
