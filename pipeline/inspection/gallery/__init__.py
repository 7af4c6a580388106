"""Write a gallery: a page of plain HTML and JavaScript that plays clips with their tracks.

Snapshot → `write` → a folder; `index.html` and its scripts read the data there.
"""
