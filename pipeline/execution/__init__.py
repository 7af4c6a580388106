"""Carry out a plan: make its shards on Ray, publish a snapshot, repair it, remove old ones.

Plan → `build` → `shard_runner` → one `shard_chain` per shard → `shard_stages` on workers.
"""
