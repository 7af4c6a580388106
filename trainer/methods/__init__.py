"""Training methods: what a run trains, and by which loss; one file each behind `Method`.

settings → method → its model, and per step: draws → loss of a batch → figures
"""
