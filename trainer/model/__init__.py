"""Student and teacher: a batch's frames → backbone → features at points and in crops → embeddings.

One training step (`step`) runs all of it, and passes the embeddings to the losses."""
