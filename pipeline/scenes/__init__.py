"""Make scenes in closed rooms from integers, and follow points on them exactly; nothing is drawn.

The data flows: `scene_id` → `scene` (rooms, placed objects, cameras, lights) → `truth`.
"""
