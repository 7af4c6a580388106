"""Videos made here, whose true tracks, occlusions and cameras follow from geometry."""
