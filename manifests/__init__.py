"""Record what exists and what it was made from: settings, table rows, receipts, snapshots.

Each shard's receipt goes into the tables of a snapshot, which trainers, status and reports read.
"""
